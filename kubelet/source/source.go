// Package source knows what should run on this node: the objects that users declared, in files or by applying them.
//
// One [Store] holds them all, by kind, namespace and name. Whoever declares a name first has it, until he withdraws it; who
// declares it too, waits in line. So a name has one meaning at any time, and no restart of the daemon changes which. What a
// file declared last while it could be read counts on while it cannot, and over a restart too. A name that a file does not
// declare any more stays for a [Grace]: most editors replace a file by a new one, and for a moment there is none.
package source

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/hostpath"
	"github.com/berth-node/berth/kubelet/manifest"
)

// Grace is how long what a file declared stays when the file declares it no more.
const Grace = time.Second

// An Origin is who declared an object.
type Origin struct {
	File string // empty: it was applied
}

func (o Origin) String() string {
	if o.File == "" {
		return "berth apply"
	}
	return o.File
}

// An Entry is a declared object. It is not changed any more: a change makes a new one.
type Entry struct {
	manifest.Object
	Origin Origin
	// UID and Created are the object's as long as it is declared, by whomever. ConfigMaps, Secrets and claims have them in their
	// metadata too; a Pod gets its own each time that it is made anew.
	UID     types.UID
	Created time.Time
	// Lost is set when what was applied cannot be read any more. There is no object then, but the name is declared: what runs
	// by it is not to be ended.
	Lost error
}

// An Applied says what became of an object that was applied.
type Applied struct {
	Key      manifest.Key
	Result   string // "created", "configured" or "unchanged"
	Warnings []string
}

// Config is what a Store is made of.
type Config struct {
	Dir    string // where it keeps what it must not forget; made if need be
	Folder Folder // of manifests; no Dir: none
	// Paths looks at what of the folder may not answer; nil: this process does.
	Paths *hostpath.Resolver
	// Vet returns why an object may not become another one of its key, besides what manifest.CheckUpdate says. nil: for no reason.
	Vet func(was, is manifest.Object) error
	Log *slog.Logger
}

// A Store is all that is declared. Its methods may be called by anybody at any time.
type Store struct {
	disk   disk
	folder Folder
	paths  *hostpath.Resolver
	vet    func(was, is manifest.Object) error
	log    *slog.Logger
	ready  chan struct{}
	rouse  chan struct{} // when a claim begins to leave

	mu     sync.Mutex                // held by who declares, also while he writes to disk
	claims map[manifest.Key][]*claim // in the order in which they came; the first is the one that counts
	files  map[string]*file
	turn   uint64
	unread error // why the folder cannot be read; nil if it can

	viewMu sync.Mutex // never held for long: who asks does not wait for a disk
	view   map[manifest.Key]Entry
	subs   map[*Subscription]bool
}

// A claim is that somebody declares a name.
type claim struct {
	Entry
	turn  uint64    // by which they are in order, also after a restart
	until time.Time // when it ends; zero while it is declared
}

// file is what is known of a manifest.
type file struct {
	faults  []*manifest.Fault // of its last reading
	told    string            // what the log has of its faults
	written []byte            // its record on disk
}

// Open reads what was applied, and what the files of the folder declared when they were read last. Both count at once; Run
// looks for what has changed.
func Open(c Config) (*Store, error) {
	s := &Store{
		disk: disk{c.Dir}, folder: c.Folder, paths: cmp.Or(c.Paths, &hostpath.Resolver{}), vet: c.Vet, log: c.Log,
		ready: make(chan struct{}), rouse: make(chan struct{}, 1),
		claims: map[manifest.Key][]*claim{}, files: map[string]*file{}, view: map[manifest.Key]Entry{}, subs: map[*Subscription]bool{},
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("declared objects: %w", err)
	}
	if s.folder.Dir == "" {
		close(s.ready)
	}
	return s, nil
}

// Ready is closed when everybody who declares has been heard since the daemon started. Before that, an object that is not in the
// store may yet come, and what runs without one is not to be ended.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Faults are what is wrong now: what cannot be read, and what is declared elsewhere already.
func (s *Store) Faults() (all []*manifest.Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unread != nil {
		all = append(all, &manifest.Fault{File: s.folder.Dir, Reason: "the folder cannot be read: " + s.unread.Error()})
	}
	for _, key := range slices.SortedFunc(maps.Keys(s.claims), manifest.Key.Compare) {
		if first := s.claims[key][0]; first.Lost != nil {
			all = append(all, &manifest.Fault{File: s.disk.applied(key), Reason: "what was applied cannot be read any more, and is to be applied again: " + first.Lost.Error()})
		}
	}
	for _, path := range slices.Sorted(maps.Keys(s.files)) {
		all = append(all, s.faultsOf(path)...)
	}
	return all
}

func (s *Store) faultsOf(path string) []*manifest.Fault {
	faults := slices.Clone(s.files[path].faults)
	for _, c := range s.claimsOf(path) {
		if first := s.claims[c.Key][0]; first != c {
			faults = append(faults, &manifest.Fault{File: path, Line: c.Line, Reason: fmt.Sprintf("%s is declared by %s already", c.Key, first.Origin)})
		}
	}
	return faults
}

// claimsOf returns what a file declares, in the order of its lines.
func (s *Store) claimsOf(path string) (all []*claim) {
	for _, line := range s.claims {
		for _, c := range line {
			if c.Origin.File == path {
				all = append(all, c)
			}
		}
	}
	slices.SortFunc(all, func(a, b *claim) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Key.Compare(b.Key)
	})
	return all
}

// Apply declares objects: all of them, or none if there is an error. Those that are declared already are replaced. What a file
// declares cannot be applied.
func (s *Store) Apply(objects []manifest.Object) ([]Applied, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mayApply(objects); err != nil {
		return nil, err
	}
	results := map[manifest.Key]string{}
	var failed error
	for _, o := range slices.SortedStableFunc(slices.Values(objects), podsLast) {
		result, err := s.apply(o)
		if err != nil {
			failed = fmt.Errorf("apply %s: %w", o.Key, err)
			break
		}
		results[o.Key] = result
	}
	var done []Applied
	for _, o := range objects {
		if result, ok := results[o.Key]; ok {
			done = append(done, Applied{o.Key, result, o.Warnings})
		}
	}
	return done, failed
}

// podsLast orders what is declared together so that a pod finds what it uses, wherever that stands.
func podsLast(a, b manifest.Object) int {
	switch {
	case (a.Pod == nil) == (b.Pod == nil):
		return 0
	case a.Pod == nil:
		return -1
	}
	return 1
}

// mayApply returns one error for all objects that cannot be applied.
func (s *Store) mayApply(objects []manifest.Object) error {
	var taken, wrong []string
	for _, o := range objects {
		line := s.claims[o.Key]
		if len(line) == 0 || line[0].Lost != nil {
			continue
		}
		if by := line[0].Origin; by.File != "" && line[0].until.IsZero() {
			taken = append(taken, fmt.Sprintf("%s is declared by the file %s already: change it there, or take it out there first", o.Key, by.File))
		} else if err := s.mayBecome(line[0].Object, o); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	switch words := strings.Join(append(taken, wrong...), "\n"); {
	case len(taken) > 0:
		return fmt.Errorf("%s: %w", words, errdefs.ErrAlreadyExists)
	case len(wrong) > 0:
		return fmt.Errorf("%s: %w", words, errdefs.ErrInvalidArgument)
	}
	return nil
}

// mayBecome returns why an object may not become another one.
func (s *Store) mayBecome(was, is manifest.Object) error {
	if err := manifest.CheckUpdate(was, is); err != nil || s.vet == nil {
		return err
	}
	return s.vet(was, is)
}

func (s *Store) apply(o manifest.Object) (result string, err error) {
	next := &claim{Entry: Entry{Object: o}}
	next.File, next.Line, next.Warnings = "", 0, nil // it does not rest in that file
	result = "created"
	line, from := s.claims[o.Key], ""
	if len(line) > 0 {
		was := line[0]
		if was.Lost == nil && was.Origin.File == "" && was.Hash == o.Hash {
			return "unchanged", nil
		}
		result, from = "configured", was.Origin.File
		next.succeed(was)
		line = line[1:]
	} else {
		s.begin(next)
	}
	if err := s.disk.writeApplied(next); err != nil {
		return "", err
	}
	s.log.Info("applied", "object", o.Key, "result", result)
	s.claims[o.Key] = append([]*claim{next}, line...)
	s.publish(o.Key, true)
	s.record(from)
	return result, nil
}

// Delete withdraws what was applied. Where a file declares the same, it has its turn then.
func (s *Store) Delete(key manifest.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := s.claims[key]
	if len(line) == 0 {
		return fmt.Errorf("%s: %w", key, errdefs.ErrNotFound)
	}
	if by := line[0].Origin; by.File != "" {
		return fmt.Errorf("%s is declared by the file %s: take it out there: %w", key, by.File, errdefs.ErrFailedPrecondition)
	}
	if err := s.disk.removeApplied(key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	s.log.Info("deleted", "object", key)
	s.drop(line[0])
	return nil
}

// setFile declares what a file has, in place of what it had.
func (s *Store) setFile(path string, objects []manifest.Object, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.file(path)
	f.faults = nil
	had := s.claimsOf(path)
	if len(objects) == 0 && len(had) > 0 {
		// It is what a full disk or an editor makes of a file. Who means it can delete the file.
		f.faults = []*manifest.Fault{{File: path, Reason: "it is empty; what it declared stays until it is deleted"}}
		stay(had)
		s.tell(path)
		return
	}
	declared := map[manifest.Key]bool{}
	for _, o := range slices.SortedStableFunc(slices.Values(objects), podsLast) {
		declared[o.Key] = true
		s.declare(path, o)
	}
	for _, c := range had {
		if !declared[c.Key] {
			s.leave(c, now)
		}
	}
	s.record(path)
	s.tell(path)
}

// declare makes or renews a file's claim.
func (s *Store) declare(path string, o manifest.Object) {
	line := s.claims[o.Key]
	next := &claim{Entry: Entry{Object: o, Origin: Origin{path}}}
	i := slices.IndexFunc(line, func(c *claim) bool { return c.Origin.File == path })
	if i < 0 && len(line) > 0 && !line[0].until.IsZero() {
		i = 0 // it takes the place of the one that leaves, as when a file got another name
	}
	if i < 0 || line[i].Hash != o.Hash {
		s.log.Info("manifest declares", "object", o.Key, "file", path, "line", o.Line)
		for _, words := range o.Warnings {
			s.log.Warn(words)
		}
	}
	if i < 0 {
		s.begin(next)
		s.claims[o.Key] = append(line, next)
		s.publish(o.Key, len(line) == 0)
		return
	}
	was := line[i]
	if err := s.mayBecome(was.Object, o); err != nil {
		f := s.files[path]
		f.faults = append(f.faults, &manifest.Fault{File: path, Line: o.Line, Reason: err.Error()})
		stay([]*claim{was}) // it is declared, if differently
		return
	}
	next.succeed(was)
	line[i] = next
	if i == 0 {
		s.publish(o.Key, was.Hash != next.Hash || was.Origin != next.Origin)
	}
	if was.Origin != next.Origin {
		s.record(was.Origin.File)
	}
}

// setBroken says that a file cannot be read or understood; what it declared stays.
func (s *Store) setBroken(path string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.file(path)
	if f.faults = manifest.Faults(err); len(f.faults) == 0 {
		f.faults = []*manifest.Fault{{File: path, Reason: err.Error()}}
	}
	stay(s.claimsOf(path))
	s.tell(path)
}

// setGone says that there is no such file.
func (s *Store) setGone(path string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[path]
	if f == nil {
		return
	}
	f.faults = nil
	s.tell(path)
	left := s.claimsOf(path)
	for _, c := range left {
		s.leave(c, now)
	}
	if len(left) == 0 {
		s.forget(path)
	}
}

// known returns the files of which something is known.
func (s *Store) known() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.files))
}

// declares reports whether a file declares anything.
func (s *Store) declares(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.claimsOf(path)) > 0
}

func (s *Store) file(path string) *file {
	if s.files[path] == nil {
		s.files[path] = &file{}
	}
	return s.files[path]
}

func (s *Store) forget(path string) {
	if err := s.disk.removeFile(path); err != nil {
		s.log.Warn("the record of a deleted manifest stays", "file", path, "error", err)
		return // it is tried again with the next look at the folder
	}
	delete(s.files, path)
}

// leave lets a claim end, in a while.
func (s *Store) leave(c *claim, now time.Time) {
	if !c.until.IsZero() {
		return
	}
	c.until = now.Add(Grace)
	select {
	case s.rouse <- struct{}{}:
	default:
	}
}

// stay keeps claims that were about to leave.
func stay(claims []*claim) {
	for _, c := range claims {
		c.until = time.Time{}
	}
}

// overdue returns the files of which something has had its grace.
func (s *Store) overdue(now time.Time) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := map[string]bool{}
	for _, line := range s.claims {
		for _, c := range line {
			if !c.until.IsZero() && !c.until.After(now) {
				files[c.Origin.File] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(files))
}

// wait gives what a file does not declare any more another grace.
func (s *Store) wait(path string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.claimsOf(path) {
		if !c.until.IsZero() {
			c.until = now.Add(Grace)
		}
	}
}

// expire ends what had its grace, and returns when there is something to end next.
func (s *Store) expire(now time.Time) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	touched := map[string]bool{}
	for _, line := range s.claims {
		for _, c := range slices.Clone(line) {
			switch {
			case c.until.IsZero():
			case c.until.After(now):
				if next.IsZero() || c.until.Before(next) {
					next = c.until
				}
			default:
				s.log.Info("manifest declares no more", "object", c.Key, "file", c.Origin.File)
				s.drop(c)
				touched[c.Origin.File] = true
			}
		}
	}
	for path := range touched {
		s.record(path)
	}
	return next
}

// drop takes a claim out of its line.
func (s *Store) drop(c *claim) {
	line := s.claims[c.Key]
	i := slices.Index(line, c)
	if line = slices.Delete(slices.Clone(line), i, i+1); len(line) == 0 {
		delete(s.claims, c.Key)
	} else {
		s.claims[c.Key] = line
	}
	s.publish(c.Key, i == 0)
	for _, waiting := range line {
		s.tell(waiting.Origin.File)
	}
}

// begin gives a new claim what it keeps as long as it is there.
func (s *Store) begin(c *claim) {
	s.turn++
	c.turn = s.turn
	c.identify(uuid.NewUUID(), time.Now().Truncate(time.Second))
}

// succeed takes over what the claim before it kept.
func (c *claim) succeed(was *claim) {
	c.turn = was.turn
	c.identify(was.UID, was.Created)
}

func (c *claim) identify(uid types.UID, created time.Time) {
	c.UID, c.Created = uid, created
	mark := func(m *metav1.ObjectMeta) { m.UID, m.CreationTimestamp = uid, metav1.NewTime(created) }
	// Copies: others may hold what the object leads to.
	switch {
	case c.ConfigMap != nil:
		c.ConfigMap = c.ConfigMap.DeepCopy()
		mark(&c.ConfigMap.ObjectMeta)
	case c.Secret != nil:
		c.Secret = c.Secret.DeepCopy()
		mark(&c.Secret.ObjectMeta)
	case c.Claim != nil:
		c.Claim = c.Claim.DeepCopy()
		mark(&c.Claim.ObjectMeta)
	case c.Volume != nil:
		c.Volume = c.Volume.DeepCopy()
		mark(&c.Volume.ObjectMeta)
	}
}

// record writes down what a file declares, so that it counts on if the file is broken when the daemon starts.
func (s *Store) record(path string) {
	f := s.files[path]
	if f == nil {
		return
	}
	claims := s.claimsOf(path)
	if len(claims) == 0 {
		if len(f.faults) == 0 {
			s.forget(path)
		}
		return
	}
	if err := s.disk.writeFile(path, f, claims); err != nil {
		s.log.Warn("what a manifest declares will be forgotten if it is broken when the daemon starts", "file", path, "error", err)
	}
}

// tell logs what is wrong in a file, once.
func (s *Store) tell(path string) {
	f := s.files[path]
	if f == nil {
		return
	}
	var words []error
	for _, fault := range s.faultsOf(path) {
		words = append(words, fault)
	}
	now := ""
	if err := errors.Join(words...); err != nil {
		now = err.Error()
	}
	switch {
	case now == f.told:
	case now == "":
		s.log.Info("manifest is well again", "file", path)
	default:
		s.log.Warn("manifest has faults", "file", path, "faults", now)
	}
	f.told = now
}
