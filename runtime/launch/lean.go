package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/mountns"
	"github.com/berth-node/berth/internal/nsfile"
	"github.com/berth-node/berth/runtime/keeper"
)

// lean is a launcher's own mount namespace, in which next to nothing is mounted. What a container takes of the host is
// carried there: a thread that stays among the host's mounts copies it, with its propagation, and it is mounted here, for
// libcontainer to find. When the container is made it is dropped here, or goes with the launcher.
//
// A nil lean is a launcher among the host's mounts. The methods do nothing then.
type lean struct {
	host *os.File
	// visits are done by the thread that is there.
	visits chan func()
	// names are the sources on the host, by the places that stand for them here.
	names map[string]string
	// attached are the mount points here that have something of the host's, in the order in which they got it.
	attached []string
	left     bool // for the host's mounts
}

// newLean takes over the descriptor of the host's mount namespace.
func newLean(host *os.File) (*lean, error) {
	l := &lean{host: host, visits: make(chan func()), names: map[string]string{}}
	arrived := make(chan error, 1)
	go nsfile.OnThread(func() error {
		err := mountns.Enter(host)
		arrived <- err
		if err != nil {
			return err
		}
		for visit := range l.visits {
			visit()
		}
		return nil
	})
	return l, <-arrived
}

// onHost runs f among the host's mounts.
func (l *lean) onHost(f func()) {
	done := make(chan struct{})
	l.visits <- func() { f(); close(done) }
	<-done
}

// leave brings the calling goroutine back among the host's mounts, for good. libcontainer starts its processes from there.
func (l *lean) leave() error {
	if l == nil {
		return nil
	}
	runtime.LockOSThread()
	l.left = true
	clear(l.names)
	return mountns.Enter(l.host)
}

// spec reads the spec of the job's bundle and brings here what it takes of the host's mounts. Where that cannot be done the
// job goes back there itself: it works there as well, and what is wrong with it libcontainer says in its own words.
func (l *lean) spec(job *keeper.Job) (*specs.Spec, error) {
	if l == nil {
		return readSpec(job.Bundle)
	}
	spec, err := readSpec(job.Bundle)
	if err == nil {
		err = l.fetch(job, spec)
	}
	if err == nil {
		return spec, nil
	}
	if err := l.leave(); err != nil {
		return nil, err
	}
	return readSpec(job.Bundle)
}

// A piece is something mounted on the host that a container takes.
type piece struct {
	path      string
	recursive bool
	tree      *os.File // nil: it is here already
	mount     *specs.Mount
}

// errNotHere says that a job wants to see the host's mounts as they are.
var errNotHere = errors.New("the job is to be done among the host's mounts")

// fetch brings here what the container takes. The root and the namespaces come to where they are on the host, since their
// paths go on record with libcontainer; the sources of mounts come to places of which the spec then speaks.
func (l *lean) fetch(job *keeper.Job, spec *specs.Spec) error {
	if l.strays(job) || wantsHost(spec) {
		return errNotHere
	}
	pieces := piecesOf(job.Bundle, spec)
	defer func() {
		for _, p := range pieces {
			if p.tree != nil {
				p.tree.Close()
			}
		}
	}()
	if err := l.copy(pieces); err != nil {
		return err
	}
	if err := l.cover(job.Places); err != nil {
		return err
	}
	for i, p := range pieces {
		if p.tree == nil {
			continue
		}
		if p.mount == nil {
			if err := mountns.Attach(p.tree, p.path); err != nil {
				return err
			}
			l.attached = append(l.attached, p.path)
			continue
		}
		place, err := attachAt(p.tree, filepath.Join(job.Places, fmt.Sprintf("%04d", i)))
		if err != nil {
			return err
		}
		p.mount.Source = place
		l.names[place] = p.path
	}
	return nil
}

// cover mounts the folder of places on itself, so that all that comes to lie there can be dropped at once: the kernel makes
// whoever unmounts something wait for all processors, and they lose time too.
func (l *lean) cover(places string) error {
	if err := unix.Mount(places, places, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", places, err)
	}
	l.attached = append(l.attached, places)
	return nil
}

// here is false for a launcher that has left for the host's mounts.
func (l *lean) here() bool { return l == nil || !l.left }

// drop takes away what was brought here.
func (l *lean) drop() error {
	if l == nil {
		return nil
	}
	for _, path := range slices.Backward(l.attached) {
		// What lies on a mount that is shared would be unmounted everywhere with it.
		if err := unix.Mount("", path, "none", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make %s private: %w", path, err)
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	l.attached = nil
	clear(l.names)
	return nil
}

// strays tells whether libcontainer's folder, and with it the run dir, is another one here: somebody has mounted it anew.
func (l *lean) strays(job *keeper.Job) bool {
	here, err := os.Stat(job.Root)
	if err != nil {
		return true
	}
	var there os.FileInfo
	l.onHost(func() { there, err = os.Stat(job.Root) })
	return err != nil || !os.SameFile(here, there)
}

// wantsHost tells of hooks, which are programs of the host, and of sockets of its programs.
func wantsHost(spec *specs.Spec) bool {
	return spec.Hooks != nil || spec.Root == nil || spec.Linux == nil ||
		spec.Linux.Seccomp != nil && spec.Linux.Seccomp.ListenerPath != ""
}

func piecesOf(bundle string, spec *specs.Spec) []*piece {
	pieces := []*piece{{path: inBundle(bundle, spec.Root.Path), recursive: true}}
	for _, ns := range spec.Linux.Namespaces {
		// Not one on the other: what comes on a mount that the host shares comes there too.
		have := slices.ContainsFunc(pieces, func(p *piece) bool { return p.path == ns.Path })
		if ns.Path != "" && !have {
			pieces = append(pieces, &piece{path: ns.Path})
		}
	}
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		recursive := slices.Contains(m.Options, "rbind")
		if recursive || m.Type == "bind" || slices.Contains(m.Options, "bind") {
			pieces = append(pieces, &piece{path: inBundle(bundle, m.Source), recursive: recursive, mount: m})
		}
	}
	return pieces
}

// inBundle is how libcontainer understands a path of the spec.
func inBundle(bundle, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(bundle, path)
}

// copy copies the pieces on the host: of mounts all, of the others those that are mounts and so are not here.
func (l *lean) copy(pieces []*piece) (err error) {
	l.onHost(func() {
		for _, p := range pieces {
			if p.mount == nil {
				var is bool
				if is, err = nsfile.IsMount(p.path); err == nil && !is {
					continue
				}
			}
			if err == nil {
				p.tree, err = mountns.Clone(p.path, p.recursive)
			}
			if err != nil {
				return
			}
		}
	})
	return err
}

// attachAt mounts a tree at a place that is made for it, and returns the place. Others have made it, most of the time, and
// have their own trees there, in their own namespaces.
func attachAt(tree *os.File, place string) (string, error) {
	st, err := tree.Stat()
	if err != nil {
		return "", err
	}
	create := func() error { return os.Mkdir(place, 0o711) }
	if place += "d"; !st.IsDir() {
		place = strings.TrimSuffix(place, "d") + "f"
		create = func() error { return os.WriteFile(place, nil, 0o600) }
	}
	err = mountns.Attach(tree, place)
	if errors.Is(err, unix.ENOENT) {
		if err := create(); err != nil && !os.IsExist(err) {
			return "", err
		}
		err = mountns.Attach(tree, place)
	}
	return place, err
}

// say puts the host's names for what a message speaks of.
func (l *lean) say(message string) string {
	if l == nil {
		return message
	}
	for place, name := range l.names {
		message = strings.ReplaceAll(message, place, name)
	}
	return message
}
