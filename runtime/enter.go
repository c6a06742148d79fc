package runtime

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"

	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/memfile"
	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/spec"
)

// enterFiles are the plan of an exec and, on cgroup v2, the cgroup in which its process is born.
type enterFiles struct{ plan, cgroup *os.File }

func (f enterFiles) close() {
	for _, file := range []*os.File{f.plan, f.cgroup} {
		if file != nil {
			file.Close()
		}
	}
}

// enterFiles prepares an exec without a launcher, in the cgroup group below the container's. Without an error there may
// still be no plan: then it is a launcher's to do, because package enter cannot, or because the filter is not compiled yet.
func (r *Runtime) enterFiles(c *container, s *specs.Spec, p *specs.Process, parent, group *cgroups.Group) (enterFiles, error) {
	if r.cfg.ExecByLibcontainer || !spec.CanEnter(s, p) {
		return enterFiles{}, nil
	}
	filter, ok := r.filters.of(r, c, s.Linux.Seccomp)
	if !ok {
		return enterFiles{}, nil
	}
	plan := spec.Enter(s, p)
	plan.Filter, plan.FilterFlags = filter.Code, filter.Flags
	plan.Keyring = "_ses." + c.id() // libcontainer's name for that of the container's own process
	var files enterFiles
	if r.cfg.Cgroups.Unified {
		dir, err := os.Open(group.String())
		if err != nil {
			return enterFiles{}, fmt.Errorf("cgroup of the exec: %w", err)
		}
		files.cgroup = dir
	} else {
		plan.CgroupProcs = procsFiles(parent, group)
	}
	data, err := plan.Encode()
	if err != nil {
		files.close()
		return enterFiles{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if files.plan, err = memfile.Sealed("berth-plan", memfile.Data, bytes.NewReader(data)); err != nil {
		files.close()
		return enterFiles{}, err
	}
	return files, nil
}

// procsFiles are those of the exec's cgroup in the hierarchies that have one, and of the container's in the others.
func procsFiles(parent, group *cgroups.Group) []string {
	paths := parent.Paths()
	maps.Copy(paths, group.Paths())
	var files []string
	for _, dir := range slices.Compact(slices.Sorted(maps.Values(paths))) {
		files = append(files, filepath.Join(dir, "cgroup.procs"))
	}
	return files
}

// maxFilters bounds the compiled filters that are kept, some 10 KiB each. A node has a handful of profiles.
const maxFilters = 64

// compileLimit bounds the compilation of a filter.
const compileLimit = 30 * time.Second

// filterTable has the compiled seccomp filters, by the hash of their profile. Its zero value is ready.
type filterTable struct {
	mu    sync.Mutex
	table map[[sha256.Size]byte]*compiledFilter
}

// compiledFilter is written once, before done is closed.
type compiledFilter struct {
	done   chan struct{}
	filter *keeper.Filter // nil if it cannot be compiled
}

// of returns the compiled form of a profile, the zero filter for none. It is false while it is not there: the first caller
// has it made, in the background, since an exec by a launcher is as fast as waiting.
func (t *filterTable) of(r *Runtime, c *container, profile *specs.LinuxSeccomp) (keeper.Filter, bool) {
	if profile == nil {
		return keeper.Filter{}, true
	}
	c.mu.Lock()
	filter := c.filterMemo
	c.mu.Unlock()
	if filter != nil {
		return *filter, true
	}
	data, err := json.Marshal(profile)
	if err != nil {
		return keeper.Filter{}, false
	}
	compiled := t.entry(r, data)
	select {
	case <-compiled.done:
	default:
		return keeper.Filter{}, false
	}
	if compiled.filter == nil {
		return keeper.Filter{}, false
	}
	c.mu.Lock()
	c.filterMemo = compiled.filter // so that the next exec need not encode the profile
	c.mu.Unlock()
	return *compiled.filter, true
}

// entry returns the profile's place in the table, where it may be on the way still.
func (t *filterTable) entry(r *Runtime, profile []byte) *compiledFilter {
	key := sha256.Sum256(profile)
	t.mu.Lock()
	defer t.mu.Unlock()
	if compiled := t.table[key]; compiled != nil {
		return compiled
	}
	compiled := &compiledFilter{done: make(chan struct{})}
	if t.table == nil || len(t.table) >= maxFilters {
		t.table = map[[sha256.Size]byte]*compiledFilter{} // containers keep what they use
	}
	t.table[key] = compiled
	r.background(func() {
		defer close(compiled.done)
		filter, err := r.compileFilter(profile)
		if err == nil {
			compiled.filter = &filter
			return
		}
		r.log.Warn("seccomp filter not compiled for execs, which are slower without it", "err", err)
		if errors.Is(err, errdefs.ErrUnimplemented) || errors.Is(err, errdefs.ErrInvalidArgument) {
			return // so it will be the next time
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.table, key)
	})
	return compiled
}

func (r *Runtime) compileFilter(profile json.RawMessage) (keeper.Filter, error) {
	ctx, cancel := context.WithTimeout(r.ctx, compileLimit)
	defer cancel()
	k, err := r.keeper.client(ctx)
	if err != nil {
		return keeper.Filter{}, err
	}
	return k.CompileFilter(ctx, profile)
}
