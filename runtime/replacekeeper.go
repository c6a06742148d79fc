package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/berth-node/berth/internal/errdefs"
)

// ReplaceKeeper has the keeper become the program at binary, in place, with launchers from launch. A keeper that is that
// program already is left alone; build is empty then. An error says that the keeper goes on as it was: it is of class
// ErrUnimplemented where the keeper cannot be replaced in place.
func (r *Runtime) ReplaceKeeper(ctx context.Context, binary, launch string) (build string, err error) {
	k, err := r.keeper.client(ctx)
	if err != nil {
		return "", err
	}
	same, err := sameContent(fmt.Sprintf("/proc/%d/exe", k.Keeper().Pid), binary)
	if err != nil {
		return "", fmt.Errorf("compare the keeper with %s: %w", binary, err)
	}
	if same {
		return "", nil
	}
	const attempts = 3
	for range attempts {
		build, err = k.Replace(ctx, binary, launch)
		if !errors.Is(err, errdefs.ErrUnavailable) || k.Err() != nil {
			break
		}
		r.log.Info("the keeper does not come to rest, asking again", "err", err)
	}
	return build, err
}

// sameContent compares two programs: those of one package have their version in them.
func sameContent(a, b string) (bool, error) {
	f, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer g.Close()
	const piece = 64 << 10
	x, y := make([]byte, piece), make([]byte, piece)
	for {
		n, errA := io.ReadFull(f, x)
		m, errB := io.ReadFull(g, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if ended(errA) || ended(errB) {
			return ended(errA) == ended(errB), nil
		}
		if err := errors.Join(errA, errB); err != nil {
			return false, err
		}
	}
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
