package runtime

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/nsfile"
)

// errDraining is for who wants a new pod on a node that is being drained.
var errDraining = fmt.Errorf("the node is being drained: %w", errdefs.ErrUnavailable)

// Drain lets no new pod in, undoes those that are just being made, and removes those that are there: each container has
// grace to end. It tells of each pod that is gone. After an error pods may be left; Drain may be called again.
func (r *Runtime) Drain(ctx context.Context, grace time.Duration, tell func(string)) error {
	if err := r.admission.shut(ctx, errDraining); err != nil {
		return fmt.Errorf("pods are being made: %w", err)
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		failed error
	)
	for _, sb := range r.index.allSandboxes() {
		wg.Go(func() {
			err := r.drainSandbox(ctx, sb, grace)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = errors.Join(failed, err)
				return
			}
			tell(fmt.Sprintf("removed pod %s/%s", sb.config.Metadata.Namespace, sb.config.Metadata.Name))
		})
	}
	for _, h := range r.held.all() {
		wg.Go(func() {
			err := r.GiveUp(ctx, h.id())
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = errors.Join(failed, err)
				return
			}
			tell(fmt.Sprintf("gave up %s, whose record was damaged", h.id()))
		})
	}
	wg.Wait()
	if failed == nil {
		failed = errors.Join(r.removePauseRoot(), nsfile.RemoveDir(netnsDir)) // that one stays if it is in use
	}
	return failed
}

func (r *Runtime) drainSandbox(ctx context.Context, sb *sandbox, grace time.Duration) error {
	stop, cancel := context.WithDeadline(ctx, time.Now().Add(grace).Add(releaseLimit))
	defer cancel()
	var wg sync.WaitGroup
	for _, c := range r.index.containersOf(sb.record.ID) {
		wg.Go(func() {
			// What does not end is killed by the removal, or else named in its error.
			_ = r.StopContainer(stop, c.id(), grace)
		})
	}
	wg.Wait()
	return r.RemoveSandbox(ctx, sb.record.ID)
}

// ShutdownKeeper ends the keeper, and with it this Runtime's use: only Close may follow. It is refused while anything
// runs; then nothing has changed.
func (r *Runtime) ShutdownKeeper(ctx context.Context) error {
	k, err := r.keeper.client(ctx)
	if err != nil {
		return err
	}
	r.parting.Store(true)
	if err := k.Shutdown(ctx); err != nil {
		r.parting.Store(false)
		return err
	}
	r.end()
	return nil
}
