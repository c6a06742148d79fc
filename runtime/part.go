package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/keeper"
)

// Part ends this Runtime for the good of the next daemon's: all its work ends, nothing is written any more, and only the
// sessions go on (Exec, ExecSync, Attach, PortForward), until Close. tell is called with the executions that are served, now
// and, before it begins, with each further one; the next daemon has to know them (see Config.ServedElsewhere). An error
// says that some work does not end in time, or that tell failed: then this Runtime is of no use any more either.
func (r *Runtime) Part(ctx context.Context, tell func(execs []string) error) error {
	r.parted.Store(true)
	r.end()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.work.Wait()
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		return fmt.Errorf("work that is under way does not end: %w", ctx.Err())
	}
	return errors.Join(r.oom.Close(), r.execs.tellOthers(tell))
}

// tellOthers calls tell with the executions that are served, and from now on before each new one.
func (t *execTable) tellOthers(tell func([]string) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell = tell
	return tell(t.ids())
}

// ids needs t.mu.
func (t *execTable) ids() []string { return slices.Sorted(maps.Keys(t.serving)) }

// begin notes an execution before the keeper hears of it; end, when nothing of it is left but what the process left behind.
func (t *execTable) begin(id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.serving == nil {
		t.serving = map[string]struct{}{}
	}
	t.serving[id] = struct{}{}
	if t.tell != nil {
		if err := t.tell(t.ids()); err != nil {
			delete(t.serving, id)
			return err
		}
	}
	return nil
}

func (t *execTable) end(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.serving, id)
}

// servedElsewhere reports which executions another daemon serves at this moment.
func (r *Runtime) servedElsewhere() map[string]bool {
	served := map[string]bool{}
	if r.cfg.ServedElsewhere != nil {
		for _, id := range r.cfg.ServedElsewhere() {
			served[id] = true
		}
	}
	return served
}

// EndExecs kills executions whose daemon has died, with what they have begun, as Recover does with those of a daemon before.
// That one has ended is no error.
func (r *Runtime) EndExecs(ctx context.Context, ids []string) error {
	var failed error
	for _, c := range r.index.allContainers() {
		group, err := r.cfg.Cgroups.Open(c.record.CgroupsPath)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if x := group.Sub(execCgroup + id); x.Exists() {
				failed = errors.Join(failed, x.Remove(ctx))
			}
		}
	}
	return failed
}

// CheckKeeper says whether this program could work with the keeper that runs in runDir. No keeper is no error.
func CheckKeeper(ctx context.Context, runDir string) error {
	err := keeper.Probe(ctx, filepath.Join(runDir, keeper.SocketName))
	if errors.Is(err, errdefs.ErrUnavailable) {
		return nil
	}
	return err
}

// CheckRecords says whether this program understands the records below rootDir: those of a newer version are an error of class
// ErrFailedPrecondition. It changes nothing, and passes over what is damaged: Recover sets that aside.
func CheckRecords(rootDir string) error {
	l := layout{root: rootDir}
	var dirs []string
	for _, id := range names(l.sandboxes()) {
		dirs = append(dirs, l.sandbox(id))
	}
	for _, id := range names(l.containers()) {
		dirs = append(dirs, l.container(id))
	}
	var newer []error
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, recordFile))
		if err != nil {
			continue
		}
		var r struct {
			Version int `json:"version"`
		}
		if json.Unmarshal(data, &r) == nil && r.Version > recordVersion {
			newer = append(newer, fmt.Errorf("%s has version %d, and this program knows %d at the most", dir, r.Version, recordVersion))
		}
	}
	if len(newer) == 0 {
		return nil
	}
	return fmt.Errorf("%w (%d records in all): %w", newer[0], len(newer), errdefs.ErrFailedPrecondition)
}
