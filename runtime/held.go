package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/network"
	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/spec"
)

// A held thing is a sandbox with its containers, or one container, that runs and whose record cannot be used: damaged in
// both places, or of a newer version. It is left alone, and nobody sees it but the operator, who repairs the record or
// gives it up. Until then its pod, or its container, is not made a second time: two of them would write to the same
// volumes. When it has ended by itself it is given up.
type heldThing struct {
	// sandbox or container; the other one is empty.
	sandbox, container string
	dir                string
	cause              error
	// pod is whose it is, as podKey; "" if that cannot be told. name and in are a container's name and its sandbox.
	pod, name, in string
	// members are the IDs of its containers, living those that run, the pause process among them.
	members []string
	living  map[string]bool
	request network.Request
}

func (h *heldThing) id() string { return h.sandbox + h.container }

func (h *heldThing) String() string {
	kind := "sandbox"
	if h.container != "" {
		kind = "container"
	}
	return fmt.Sprintf("%s: %v; %s %s runs on unseen: put the file right and call berth repair, or berth repair --give-up %s",
		h.dir, h.cause, kind, h.id(), h.id())
}

// heldTable is the held things by their IDs.
type heldTable struct {
	mu     sync.Mutex
	things map[string]*heldThing
}

// podKey names a pod whatever its attempt.
func podKey(namespace, name, uid string) string {
	if uid == "" && name == "" {
		return ""
	}
	return fmt.Sprintf("%s/%s (UID %s)", namespace, name, uid)
}

func (t *heldTable) add(h *heldThing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.things == nil {
		t.things = map[string]*heldThing{}
	}
	t.things[h.id()] = h
}

// take removes and returns the thing of this ID; nil if none is held.
func (t *heldTable) take(id string) *heldThing {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.things[id]
	delete(t.things, id)
	return h
}

func (t *heldTable) empty() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.things) == 0
}

// all returns the held things by ID.
func (t *heldTable) all() []*heldThing {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*heldThing
	for _, id := range slices.Sorted(maps.Keys(t.things)) {
		out = append(out, t.things[id])
	}
	return out
}

// holds says whether a sandbox or container, or the one that it belongs to, is held.
func (t *heldTable) holds(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.things {
		if h.id() == id || h.living[id] || slices.Contains(h.members, id) {
			return true
		}
	}
	return false
}

// exited notes the end of a process. It returns the ID of the held thing in which nothing runs any more; "" for none.
func (t *heldTable) exited(id string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.things {
		if !h.living[id] {
			continue
		}
		if delete(h.living, id); len(h.living) == 0 {
			return h.id()
		}
	}
	return ""
}

// attached are the network requests of held sandboxes.
func (t *heldTable) attached() []network.Request {
	var out []network.Request
	for _, h := range t.all() {
		if h.sandbox != "" {
			out = append(out, h.request)
		}
	}
	return out
}

// refusePod is an error if the pod runs in a sandbox that is held.
func (t *heldTable) refusePod(m *cri.PodSandboxMetadata) error {
	key := podKey(m.GetNamespace(), m.GetName(), m.GetUid())
	for _, h := range t.all() {
		if h.sandbox != "" && h.pod == key {
			return fmt.Errorf("pod %s runs already, and must not run twice: %s: %w", key, h, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// refuseContainer is an error if a container of this name in the sandbox is held.
func (t *heldTable) refuseContainer(sandboxID, name string) error {
	for _, h := range t.all() {
		if h.container != "" && h.in == sandboxID && h.name == name {
			return fmt.Errorf("container %s of this sandbox runs already, and must not run twice: %s: %w", name, h, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// holdSandbox holds a sandbox whose record cannot be used if anything of it runs; if not, the record is set aside, and
// false says that its containers are to be entered by themselves.
func (r *Runtime) holdSandbox(f found[sandbox], members []found[container], known map[string]keeper.State) bool {
	h := &heldThing{sandbox: f.id, dir: r.paths.sandbox(f.id), cause: f.err, living: map[string]bool{}}
	annotations := r.bundleAnnotations(f.id) // of the pause process
	for _, m := range members {
		h.members = append(h.members, m.id)
		if annotations == nil {
			annotations = r.bundleAnnotations(m.id)
		}
	}
	for _, id := range append(slices.Clone(h.members), f.id) {
		if lives(known, id) {
			h.living[id] = true
		}
	}
	if len(h.living) == 0 {
		r.setAside(h.dir, f.err, "nothing of it ran")
		_ = os.Remove(f.thing.copy)
		return false
	}
	a := f.thing.record.Anchors
	if a.Name == "" {
		a = f.thing.facts.Anchors
	}
	if a.Name == "" {
		a.Namespace, a.Name, a.UID = annotations[spec.AnnotationSandboxNamespace], annotations[spec.AnnotationSandboxName], annotations[spec.AnnotationSandboxUID]
	}
	h.pod = podKey(a.Namespace, a.Name, a.UID)
	f.thing.record.ID, f.thing.facts.Anchors = f.id, a
	h.request = networkRequest(f.thing) // as far as the record could be read
	h.request.NetNS = netnsPath(f.id)
	r.log.Error("a damaged record is left alone, since its pod runs", "sandbox", f.id, "pod", h.pod, "cause", f.err)
	r.held.add(h)
	return true
}

// holdContainer holds a container that runs.
func (r *Runtime) holdContainer(f found[container]) {
	annotations := r.bundleAnnotations(f.id)
	r.log.Error("a damaged record is left alone, since its container runs", "container", f.id, "cause", f.err)
	r.held.add(&heldThing{
		container: f.id, dir: r.paths.container(f.id), cause: f.err, members: []string{f.id}, living: map[string]bool{f.id: true},
		in: annotations[spec.AnnotationSandboxID], name: annotations[spec.AnnotationContainerName],
	})
}

// Repair reads the records again that could not be used and whose pods run, and says in words what became of each.
func (r *Runtime) Repair(ctx context.Context) ([]string, error) {
	r.repairing.Lock()
	defer r.repairing.Unlock()
	k, err := r.keeper.client(ctx)
	if err != nil {
		return nil, err
	}
	states, err := k.List(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]keeper.State{}
	for _, s := range states {
		known[s.ID] = s
	}
	var said []string
	for _, h := range r.held.all() {
		if err := r.readAgain(h, known); err != nil {
			said = append(said, fmt.Sprintf("%s cannot be used yet: %v", h.dir, err))
			continue
		}
		said = append(said, fmt.Sprintf("%s is known again", h.dir))
	}
	r.restoreNetwork(ctx)
	r.cfg.Images.KeepLayers(!r.held.empty())
	return said, nil
}

// readAgain enters a held thing whose record was put right.
func (r *Runtime) readAgain(h *heldThing, known map[string]keeper.State) error {
	if h.sandbox != "" {
		sb, faults, err := loadSandbox(r.paths, h.sandbox, r.records)
		if err != nil {
			return err
		}
		r.held.take(h.id())
		r.enterSandbox(found[sandbox]{h.sandbox, sb, faults, nil}, known)
	} else {
		if _, _, err := loadContainer(r.paths, h.container, r.records); err != nil {
			return err
		}
		r.held.take(h.id())
	}
	for _, id := range h.members {
		c, faults, err := loadContainer(r.paths, id, r.records)
		r.enterContainer(found[container]{id, c, faults, err}, known)
		if c = r.index.container(id); c != nil {
			r.resume(c, known)
		}
	}
	return nil
}

// GiveUp ends and takes down what is held under this ID, as far as it is known, and sets its record aside.
func (r *Runtime) GiveUp(ctx context.Context, id string) error {
	return joinErr(ctx, r, "give up "+id, func() error {
		ctx, cancel := r.detached(teardownLimit)
		defer cancel()
		return r.giveUp(ctx, id)
	})
}

func (r *Runtime) giveUp(ctx context.Context, id string) error {
	r.repairing.Lock()
	defer r.repairing.Unlock()
	h := r.held.take(id)
	if h == nil {
		return fmt.Errorf("no running sandbox or container with a damaged record has the ID %q: %w", id, errdefs.ErrNotFound)
	}
	if err := r.takeDownHeld(ctx, h); err != nil {
		r.held.add(h)
		return err
	}
	r.setAside(h.dir, h.cause, "given up")
	r.cfg.Images.KeepLayers(!r.held.empty())
	return nil
}

func (r *Runtime) takeDownHeld(ctx context.Context, h *heldThing) error {
	var failed error
	for _, id := range append(slices.Clone(h.members), h.sandbox) {
		if id == "" {
			continue
		}
		failed = errors.Join(failed, r.dismantle(ctx, id, r.strayCgroup(id)))
		r.cfg.Images.Release(id)
	}
	if failed != nil {
		return failed
	}
	for _, id := range h.members {
		if id != h.container {
			failed = errors.Join(failed, r.paths.containerTwin(id, nil).erase())
		}
	}
	if h.container != "" {
		return errors.Join(failed, removeIfThere(r.paths.containerTwin(h.container, nil).copy))
	}
	failed = errors.Join(failed, r.cfg.Network.Detach(ctx, h.request), removeIfThere(r.paths.sandboxTwin(h.sandbox, nil).copy))
	if failed != nil {
		return failed
	}
	return r.removeStraySandbox(ctx, h.sandbox)
}

// damagedList is what was set aside.
type damagedList struct {
	mu    sync.Mutex
	files []damagedFile
}

type damagedFile struct {
	path, text string
}

func (d *damagedList) add(path, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files = slices.DeleteFunc(d.files, func(f damagedFile) bool { return f.path == path })
	d.files = append(d.files, damagedFile{path, text})
}

// said returns what is still there: who has looked deletes it.
func (d *damagedList) said() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	d.files = slices.DeleteFunc(d.files, func(f damagedFile) bool {
		_, err := os.Lstat(f.path)
		return errors.Is(err, os.ErrNotExist)
	})
	for _, f := range d.files {
		out = append(out, f.path+": "+f.text)
	}
	return out
}

// setAside moves a file or folder of a damaged record to where nothing looks for it but a person. outcome says what
// became of what it described.
func (r *Runtime) setAside(path string, cause error, outcome string) {
	place := path + ".damaged"
	if below, err := filepath.Rel(r.paths.root, path); err == nil && filepath.IsLocal(below) {
		place = filepath.Join(r.paths.damaged(), strings.ReplaceAll(below, "/", "-"))
	}
	_, err := os.Lstat(path)
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(place), 0o700), os.RemoveAll(place))
	}
	if err == nil {
		err = os.Rename(path, place)
	}
	r.log.Error("a damaged record was set aside", "record", path, "place", place, "cause", cause, "outcome", outcome, "err", err)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return // nothing to look at
	case err != nil:
		place = path
	}
	r.damaged.add(place, fmt.Sprintf("%v (%s)", cause, outcome))
}

// mend puts the files of a record right again whose content is known all the same.
func (r *Runtime) mend(t twin, faults []fault, write func() error) {
	if len(faults) == 0 {
		return
	}
	for _, f := range faults {
		r.setAside(f.path, f.cause, "it was written anew from what else is known")
	}
	if err := write(); err != nil {
		r.log.Error("a damaged record could not be written anew", "record", t.dir, "err", err)
	}
}

// noteEarlierDamage finds what daemons before this one have set aside.
func (r *Runtime) noteEarlierDamage() {
	for _, name := range names(r.paths.damaged()) {
		r.damaged.add(filepath.Join(r.paths.damaged(), name), "set aside earlier; see the daemon's log of that time")
	}
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
