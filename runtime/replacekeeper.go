package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/keeper"
)

// ReplaceKeeper has the keeper become the program at binary, in place, with launchers from launch. A keeper that is that
// program already, and has those launchers, is left alone; build is empty then. An error says that the keeper goes on as it was: it is of class
// ErrUnimplemented where the keeper cannot be replaced in place.
func (r *Runtime) ReplaceKeeper(ctx context.Context, binary, launch string) (build string, err error) {
	k, err := r.keeper.client(ctx)
	if err != nil {
		return "", err
	}
	pid := k.Keeper().Pid
	same, err := sameContent(fmt.Sprintf("/proc/%d/exe", pid), binary)
	if err == nil && same {
		same, err = sameLauncher(pid, launch)
	}
	if err != nil {
		return "", fmt.Errorf("compare the keeper with what is installed: %w", err)
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

// sameLauncher reports whether a keeper's launchers are the program at path. A keeper reads it once, and then has it in a file
// in memory, so that a package which brings nothing but another launcher would be of no effect until the next boot.
func sameLauncher(pid int, path string) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		fd := filepath.Join(dir, e.Name())
		target, err := os.Readlink(fd)
		if err == nil && strings.HasPrefix(target, "/memfd:"+keeper.SealedLauncher+" ") { // others come and go meanwhile
			return sameContent(fd, path)
		}
	}
	return false, nil // a keeper that keeps it elsewhere: another version
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
