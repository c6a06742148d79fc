package cgroups

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/systemd"

	"github.com/berth-node/berth/internal/errdefs"
)

// Group is the cgroup of a container, of a pod, or of one exec. It is a name: it may not be there yet, or no more.
// Its methods are safe for concurrent use.
type Group struct {
	host  *Host
	paths map[string]string // hierarchy → directory, see Host.mounts; never changed
	unit  *unit             // what systemd knows it by; nil for one made by mkdir
	set   sync.Mutex        // one change of limits at a time, since a change reads before it writes
}

// unit is a scope (prefix-name.scope in slice) or, with a name that ends in .slice, a slice.
type unit struct{ slice, prefix, name string }

// Exists says whether the cgroup is there, on v1 in at least one hierarchy.
func (g *Group) Exists() bool { return slices.ContainsFunc(g.dirs(), exists) }

// Paths returns the directories of the cgroup: on v2 the only key is "", on v1 the keys are controllers and
// "name=systemd", and "" for the v2 tree of a hybrid node.
func (g *Group) Paths() map[string]string { return maps.Clone(g.paths) }

// String returns the directory that says best where the cgroup is.
func (g *Group) String() string { return g.dirs()[0] }

// dirs returns each directory once: on v1 two controllers may share a hierarchy.
func (g *Group) dirs() []string {
	return slices.Compact(slices.Sorted(maps.Values(g.paths)))
}

// Pids returns the processes in the cgroup and below it, sorted; none if it is not there.
//
// On v1 they are the union of all hierarchies: a process that died, or was killed, on its way in is in some of them only.
func (g *Group) Pids() ([]int, error) {
	var all []int
	for _, dir := range g.dirs() {
		pids, err := allPids(dir)
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("processes of cgroup %s: %w", dir, err)
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// subHierarchies are the v1 hierarchies in which an exec gets a cgroup of its own: enough to count it and to kill it with
// all its children. In the others it stays in the container's, whose limits are then its limits.
var subHierarchies = []string{"pids", "freezer", "name=systemd"}

// Sub returns the cgroup called name (one path element) below this one, for an exec. It has no limits and no
// controllers of its own.
func (g *Group) Sub(name string) *Group {
	paths := map[string]string{}
	for hierarchy := range g.subPaths(name) {
		paths[hierarchy] = filepath.Join(g.paths[hierarchy], filepath.Clean("/"+name))
	}
	return &Group{host: g.host, paths: paths}
}

// SubPaths returns the sub-cgroup as libcontainer's Process.SubCgroupPaths wants it: relative to the container's.
func (g *Group) SubPaths(name string) map[string]string { return g.subPaths(name) }

func (g *Group) subPaths(name string) map[string]string {
	sub := filepath.Clean("/" + name)
	if g.host.Unified {
		return map[string]string{"": sub}
	}
	paths := map[string]string{}
	// Never the key "": libcontainer would take it for all hierarchies, and cpuset, say, has no use for a second level.
	for _, hierarchy := range subHierarchies {
		if _, ok := g.paths[hierarchy]; ok {
			paths[hierarchy] = sub
		}
	}
	return paths
}

// Create makes the directories of a [Group.Sub]. The error is an ErrNotFound if the cgroup above is gone, an
// ErrAlreadyExists if it is there already; nothing is left behind by a failure.
func (g *Group) Create() error {
	var made []string
	for _, dir := range g.dirs() {
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			made = append(made, dir)
			err = g.joinThreads(dir)
		}
		if err == nil {
			continue
		}
		for _, d := range made {
			// It is empty and a moment old; if somebody uses it by now, it is theirs.
			_ = os.Remove(d)
		}
		class := err
		switch {
		case errors.Is(err, os.ErrExist):
			class = errdefs.ErrAlreadyExists
		case gone(err):
			class = errdefs.ErrNotFound
		}
		return fmt.Errorf("create cgroup %s: %w", dir, class)
	}
	return nil
}

// joinThreads makes a new cgroup of v2 one that takes processes, should the one above have become the root of threaded cgroups:
// because it has some, or because a controller was switched on for those below while there are processes in it. What is made in
// such a one belongs to neither kind until it is told.
func (g *Group) joinThreads(dir string) error {
	if !g.host.Unified {
		return nil
	}
	r := reader{dir: dir}
	if kind, _ := r.text("cgroup.type"); r.err != nil || kind != "domain invalid" {
		return r.err
	}
	return writeFile(dir, "cgroup.type", "threaded")
}

// manager returns the library's manager of this cgroup. It is made anew for each use, since a manager remembers the
// resources that it wrote last; making one costs nothing.
func (g *Group) manager() (cgroups.Manager, error) {
	config := &cgroups.Cgroup{Resources: &cgroups.Resources{SkipDevices: true, SkipFreezeOnSet: true}}
	if u := g.unit; u != nil {
		config.Systemd, config.Parent, config.ScopePrefix, config.Name = true, u.slice, u.prefix, u.name
		if g.host.Unified {
			return systemd.NewUnifiedManager(config, g.paths[""])
		}
		return systemd.NewLegacyManager(config, g.Paths())
	}
	if g.host.Unified {
		return fs2.NewManager(config, g.paths[""])
	}
	return fs.NewManager(config, g.Paths())
}
