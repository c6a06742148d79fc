package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/hostpath"
	"github.com/berth-node/berth/kubelet/manifest"
)

func key(name string) manifest.Key {
	return manifest.Key{Kind: manifest.ConfigMap, Namespace: "default", Name: name}
}

// text is a document that declares a ConfigMap.
func text(name, value string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {v: %q}\n", name, value)
}

func objects(t *testing.T, texts ...string) []manifest.Object {
	t.Helper()
	o, err := manifest.Decode("cmd.yaml", []byte(strings.Join(texts, "")))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// node is a store with a folder, and what happens around it.
type node struct {
	t          *testing.T
	state, dir string
	store      *Store
	sub        *Subscription
	stop       func()
	recursive  bool
	rescan     time.Duration
	noFolder   bool
	paths      *hostpath.Resolver
}

func newNode(t *testing.T) *node {
	t.Parallel()
	dir := t.TempDir()
	n := &node{t: t, state: filepath.Join(dir, "objects"), dir: filepath.Join(dir, "manifests")}
	if err := os.Mkdir(n.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n.stop != nil {
			n.stop()
		}
	})
	return n
}

// open is the start of a daemon; run is what it does then.
func (n *node) open() *node {
	n.t.Helper()
	folder := Folder{Dir: n.dir, Recursive: n.recursive, Rescan: n.rescan}
	if n.noFolder {
		folder = Folder{}
	}
	var err error
	n.store, err = Open(Config{Dir: n.state, Folder: folder, Paths: n.paths, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		n.t.Fatal(err)
	}
	n.sub = n.store.Subscribe()
	return n
}

func (n *node) run() *node {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.store.Run(ctx); err != nil {
			n.t.Error(err)
		}
	}()
	n.stop = func() {
		cancel()
		<-done
		n.stop = nil
	}
	return n
}

func (n *node) restart() *node {
	n.stop()
	return n.open().run()
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) write(name string, texts ...string) {
	n.t.Helper()
	if err := os.WriteFile(n.path(name), []byte(strings.Join(texts, "")), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// shows waits until the store holds just this: name=value@origin, in the order of names.
func (n *node) shows(want ...string) {
	n.t.Helper()
	n.until(func() string {
		if got := n.declared(); !slices.Equal(got, want) {
			return fmt.Sprintf("declared %q, want %q", got, want)
		}
		return ""
	})
}

func (n *node) declared() (got []string) {
	for _, e := range n.store.List(manifest.ConfigMap) {
		at := filepath.Base(e.Origin.File)
		if e.Origin.File == "" {
			at = "applied"
		}
		got = append(got, fmt.Sprintf("%s=%s@%s", e.Name, e.ConfigMap.Data["v"], at))
	}
	return got
}

// until waits for what has no event of its own.
func (n *node) until(wrong func() string) {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		words := wrong()
		if words == "" {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatal(words)
		}
	}
}

// faulty waits until the faults, without the folder, are these.
func (n *node) faulty(want ...string) {
	n.t.Helper()
	n.until(func() string {
		var got []string
		for _, f := range n.store.Faults() {
			got = append(got, strings.ReplaceAll(f.Error(), n.dir+"/", ""))
		}
		if !slices.Equal(got, want) {
			return fmt.Sprintf("faults %q, want %q", got, want)
		}
		return ""
	})
}

// stays checks that the store holds this now, and still does after the longest time that something may take.
func (n *node) stays(want ...string) {
	n.t.Helper()
	n.shows(want...)
	time.Sleep(Grace + Grace/4)
	if got := n.declared(); !slices.Equal(got, want) {
		n.t.Fatalf("declared %q, want %q", got, want)
	}
}

func (n *node) ready() {
	n.t.Helper()
	select {
	case <-n.store.Ready():
	case <-time.After(20 * time.Second):
		n.t.Fatal("the store is not ready")
	}
}

func TestFilesComeChangeAndGo(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", text("one", "1"), text("two", "1"))
	n.write(".hidden.yaml", text("hidden", "1"))
	n.write("a.yaml~", text("backup", "1"))
	n.open().run().ready()
	n.shows("one=1@a.yaml", "two=1@a.yaml")
	n.write("b.json", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"three"},"data":{"v":"1"}}`)
	n.shows("one=1@a.yaml", "three=1@b.json", "two=1@a.yaml")
	n.write("a.yaml", text("one", "2"))
	n.shows("one=2@a.yaml", "three=1@b.json")
	n.must(os.Remove(n.path("b.json")))
	n.shows("one=2@a.yaml")
	n.must(os.Rename(n.path("a.yaml"), n.path("a.off")))
	n.shows()
	if entries, err := os.ReadDir(filepath.Join(n.state, "files")); err != nil || len(entries) > 0 {
		t.Errorf("records are left: %v, %v", entries, err)
	}
}

// Subscribers hear of each change, and of nothing else; what they did not take yet they hear once.
func TestSubscription(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", text("one", "1"), text("two", "1"))
	n.open().run().ready()
	if got := n.sub.Take(); !slices.Equal(got, []manifest.Key{key("one"), key("two")}) {
		t.Errorf("first: %v", got)
	}
	late := n.store.Subscribe()
	if got := late.Take(); len(got) != 2 {
		t.Errorf("who comes late hears of %v", got)
	}
	late.Close()
	<-n.sub.C()
	n.write("a.yaml", "# moved\n", text("zero", "1"), text("two", "2"), text("one", "1"))
	<-n.sub.C()
	n.shows("one=1@a.yaml", "two=2@a.yaml", "zero=1@a.yaml")
	if got := n.sub.Take(); !slices.Equal(got, []manifest.Key{key("two"), key("zero")}) {
		t.Errorf("after an edit: %v", got)
	}
	if got := late.Take(); len(got) != 0 {
		t.Errorf("who has left hears of %v", got)
	}
}

// Most editors write a new file in the place of the old one; no name may be gone in between, since its pod would be.
func TestEditorsEndNothing(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", text("one", "1"))
	n.open().run().ready()
	n.shows("one=1@a.yaml")
	n.sub.Take()
	gone := func(what string) {
		t.Helper()
		for _, k := range n.sub.Take() {
			if _, ok := n.store.Get(k); !ok {
				t.Errorf("%s: %s is gone", what, k)
			}
		}
	}
	// vim: the old one is renamed, the new one written.
	n.must(os.Rename(n.path("a.yaml"), n.path("a.yaml~")))
	n.until(func() string {
		n.store.mu.Lock()
		defer n.store.mu.Unlock()
		if n.store.claims[key("one")][0].until.IsZero() {
			return "the store has not seen that the file is away"
		}
		return ""
	})
	gone("renamed")
	n.write("a.yaml", text("one", "2"))
	n.stays("one=2@a.yaml")
	gone("written")
	// A full disk, or nano between truncating and writing.
	n.write("a.yaml", "")
	n.faulty("a.yaml: it is empty; what it declared stays until it is deleted")
	n.stays("one=2@a.yaml")
	// git: unlinked, then made.
	n.must(os.Remove(n.path("a.yaml")))
	n.write("a.yaml", text("one", "3"))
	n.stays("one=3@a.yaml")
	n.faulty()
	gone("made anew")
	// Renamed: the same object from another file.
	uid := func() any { e, _ := n.store.Get(key("one")); return e.UID }
	was := uid()
	n.must(os.Rename(n.path("a.yaml"), n.path("b.yaml")))
	n.stays("one=3@b.yaml")
	n.faulty()
	gone("renamed for good")
	if uid() != was {
		t.Error("another UID after a rename")
	}
}

// Who is kept from running while a file is replaced, longer than a grace, ends nothing: it looks again, and does not take what is being
// written for what was meant.
func TestAReplacedFileOfWhichNobodyHeard(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", text("one", "1"))
	n.open()
	w := &watcher{s: n.store, ctx: t.Context(), eyes: n.store.paths.Reader(t.Context(), nil), seen: map[string]stamp{}, dirs: map[int32]string{}}
	w.scan()
	n.must(os.Rename(n.path("a.yaml"), n.path("a.yaml~")))
	gone := time.Now()
	w.told(n.path("a.yaml"), unix.IN_MOVED_FROM)
	n.write("a.yaml", text("one", "2"))
	later := func(tenths time.Duration) time.Time { return gone.Add(tenths * Grace / 10) }
	n.must(os.Chtimes(n.path("a.yaml"), later(14), later(14)))
	w.next(later(15))
	n.shows("one=1@a.yaml")
	w.next(later(30))
	n.shows("one=2@a.yaml")
	n.must(os.Remove(n.path("a.yaml")))
	w.told(n.path("a.yaml"), unix.IN_DELETE)
	w.next(time.Now().Add(Grace * 2))
	n.shows()
}

// What a broken file declared stays, also over a restart; until the file is deleted.
func TestBrokenFileKeepsWhatItDeclared(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", text("one", "1"), text("two", "1"))
	n.open().run().ready()
	n.shows("one=1@a.yaml", "two=1@a.yaml")
	n.write("a.yaml", text("one", "2"), "---\nkind: Nonsense\n")
	n.faulty("a.yaml:7: kind: a Nonsense means nothing to a node by itself, which takes Pod, ConfigMap, Secret, PersistentVolumeClaim and PersistentVolume")
	n.stays("one=1@a.yaml", "two=1@a.yaml")
	n.restart().ready()
	n.faulty("a.yaml:7: kind: a Nonsense means nothing to a node by itself, which takes Pod, ConfigMap, Secret, PersistentVolumeClaim and PersistentVolume")
	n.stays("one=1@a.yaml", "two=1@a.yaml")
	n.write("a.yaml", text("one", "2"))
	n.shows("one=2@a.yaml")
	n.faulty()
	n.write("a.yaml", "{")
	n.must(os.Remove(n.path("a.yaml")))
	n.shows()
	n.faulty()
}

// Of two files with the same name in them the first counts; then the other one, and no restart changes which
// (kubernetes/kubernetes#104743).
func TestTwoFilesOneName(t *testing.T) {
	n := newNode(t)
	n.write("b.yaml", text("one", "b"))
	n.open().run().ready()
	n.write("a.yaml", "#\n"+text("one", "a"), text("two", "a"))
	n.shows("one=b@b.yaml", "two=a@a.yaml")
	conflict := "a.yaml:3: ConfigMap default/one is declared by b.yaml already"
	n.faulty(conflict)
	n.restart().ready()
	n.faulty(conflict)
	n.write("b.yaml", text("one", "c"))
	n.stays("one=c@b.yaml", "two=a@a.yaml")
	n.sub.Take()
	n.must(os.Remove(n.path("b.yaml")))
	n.shows("one=a@a.yaml", "two=a@a.yaml")
	n.faulty()
	if got := n.sub.Take(); !slices.Equal(got, []manifest.Key{key("one")}) {
		t.Errorf("changed: %v", got)
	}
}

func TestApply(t *testing.T) {
	n := newNode(t)
	n.open().run().ready()
	results := func(want string, texts ...string) {
		t.Helper()
		done, err := n.store.Apply(objects(t, texts...))
		n.must(err)
		var got []string
		for _, a := range done {
			got = append(got, a.Key.Name+" "+a.Result)
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("applied %q, want %s", got, want)
		}
	}
	results("one created, two created", text("one", "1"), text("two", "1"))
	results("one unchanged, two configured", text("one", "1"), text("two", "2"))
	was, _ := n.store.Get(key("two"))
	if was.UID == "" || was.Created.IsZero() || was.ConfigMap.UID != was.UID || !was.ConfigMap.CreationTimestamp.Time.Equal(was.Created) {
		t.Errorf("%+v", was)
	}
	n.restart()
	n.shows("one=1@applied", "two=2@applied")
	if is, _ := n.store.Get(key("two")); is.UID != was.UID || !is.Created.Equal(was.Created) || is.Hash != was.Hash {
		t.Errorf("after a restart %+v, before %+v", is, was)
	}
	n.must(n.store.Delete(key("one")))
	n.shows("two=2@applied")
	if err := n.store.Delete(key("one")); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	n.restart()
	n.shows("two=2@applied")
}

// Who applies what a file declares is told where; a file that declares what is applied waits.
func TestFileAndApply(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", text("one", "a"))
	n.open().run().ready()
	_, err := n.store.Apply(objects(t, text("two", "x"), text("one", "x")))
	want := "ConfigMap default/one is declared by the file " + n.path("a.yaml") + " already: change it there, or take it out there first: already exists"
	if err == nil || err.Error() != want || !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	n.shows("one=a@a.yaml") // nothing of it
	if err := n.store.Delete(key("one")); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), n.path("a.yaml")) {
		t.Errorf("deleted what a file declares: %v", err)
	}
	_, err = n.store.Apply(objects(t, text("two", "x")))
	n.must(err)
	n.write("b.yaml", text("two", "b"))
	n.faulty("b.yaml:2: ConfigMap default/two is declared by berth apply already")
	n.restart().ready()
	n.faulty("b.yaml:2: ConfigMap default/two is declared by berth apply already")
	n.shows("one=a@a.yaml", "two=x@applied")
	n.must(n.store.Delete(key("two")))
	n.shows("one=a@a.yaml", "two=b@b.yaml")
	n.faulty()
}

func TestImmutable(t *testing.T) {
	n := newNode(t)
	n.open().run().ready()
	_, err := n.store.Apply(objects(t, text("one", "1")+"immutable: true\n"))
	n.must(err)
	if _, err := n.store.Apply(objects(t, text("one", "2")+"immutable: true\n")); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "field is immutable when `immutable` is set") {
		t.Errorf("changed: %v", err)
	}
	n.write("a.yaml", text("two", "1")+"immutable: true\n")
	n.shows("one=1@applied", "two=1@a.yaml")
	n.write("a.yaml", text("two", "2")+"immutable: true\n")
	n.until(func() string {
		if len(n.store.Faults()) != 1 {
			return "no fault"
		}
		return ""
	})
	n.stays("one=1@applied", "two=1@a.yaml")
}

// Objects rest for root alone.
func TestModes(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", text("one", "a"))
	n.open().run().ready()
	_, err := n.store.Apply(objects(t, text("two", "x")))
	n.must(err)
	files := 0
	n.until(func() string { // the record of the file is written after it counts
		files = 0
		n.must(filepath.WalkDir(n.state, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := d.Info()
			if err == nil && st.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", path, st.Mode())
			}
			if !d.IsDir() {
				files++
			}
			return err
		}))
		if files != 2 {
			return fmt.Sprintf("%d files, want 2", files)
		}
		return ""
	})
}

// A damaged object keeps its name, so that what runs by it is not taken for something that nobody wants.
func TestDamage(t *testing.T) {
	n := newNode(t)
	n.noFolder = true
	n.open().run().ready()
	_, err := n.store.Apply(objects(t, text("one", "1"), text("two", "1")))
	n.must(err)
	n.stop()
	n.must(os.WriteFile(n.store.disk.applied(key("one")), []byte(`{"kind":`), 0o600))
	n.open().run()
	n.faulty(n.store.disk.applied(key("one")) + ": what was applied cannot be read any more, and is to be applied again: read " +
		n.store.disk.applied(key("one")) + ": unexpected end of JSON input")
	e, ok := n.store.Get(key("one"))
	if !ok || e.Lost == nil || e.ConfigMap != nil {
		t.Errorf("%+v, %v", e, ok)
	}
	_, err = n.store.Apply(objects(t, text("one", "2")))
	n.must(err)
	n.shows("one=2@applied", "two=1@applied")
	n.stop()
	n.must(os.WriteFile(n.store.disk.applied(key("one")), nil, 0o600))
	n.open().run()
	n.must(n.store.Delete(key("one")))
	n.restart()
	n.shows("two=1@applied")
}

func TestRecursive(t *testing.T) {
	n := newNode(t)
	n.must(os.MkdirAll(n.path("team/deep"), 0o755))
	n.must(os.MkdirAll(n.path(".git"), 0o755))
	n.write(".git/x.yaml", text("git", "1"))
	n.write("team/a.yaml", text("a", "1"))
	n.open().run().ready()
	n.shows()
	n.stop()
	n.recursive = true
	n.open().run().ready()
	n.shows("a=1@a.yaml")
	n.write("team/deep/b.yaml", text("b", "1"))
	n.shows("a=1@a.yaml", "b=1@b.yaml")
	n.must(os.MkdirAll(n.path("new/below"), 0o755))
	n.write("new/below/c.yaml", text("c", "1"))
	n.shows("a=1@a.yaml", "b=1@b.yaml", "c=1@c.yaml")
	n.must(os.Rename(n.path("new"), n.path("old"))) // another path, the same object
	n.stays("a=1@a.yaml", "b=1@b.yaml", "c=1@c.yaml")
	n.write("old/below/c.yaml", text("c", "2"))
	n.shows("a=1@a.yaml", "b=1@b.yaml", "c=2@c.yaml")
	n.must(os.RemoveAll(n.path("team")))
	n.shows("c=2@c.yaml")
	// Who no longer wants the folders below does not want what is in them.
	n.stop()
	n.recursive = false
	n.open().run().ready()
	n.shows()
}

// A folder that is not there when the daemon starts, as one on a disk that is mounted late, was not read: nothing in it is gone.
func TestFolderComesLate(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", text("one", "1"))
	n.open().run().ready()
	n.shows("one=1@a.yaml")
	n.stop()
	away := n.dir + ".away"
	n.must(os.Rename(n.dir, away))
	n.open().run()
	n.stays("one=1@a.yaml")
	select {
	case <-n.store.Ready():
		t.Error("ready without having read the folder")
	default:
	}
	n.faulty(n.dir + ": the folder cannot be read: watch " + n.dir + ": no such file or directory")
	n.write("../later", "") // something else beside it
	n.must(os.Rename(away, n.dir))
	n.ready()
	n.faulty()
	n.stays("one=1@a.yaml")
	n.write("b.yaml", text("two", "1"))
	n.shows("one=1@a.yaml", "two=1@b.yaml")
	// Taken away while it is watched, with all that is in it.
	n.must(os.RemoveAll(n.dir))
	n.shows()
	n.must(os.MkdirAll(n.dir, 0o755))
	n.write("c.yaml", text("three", "1"))
	n.shows("three=1@c.yaml")
}

func TestFolderNobodyEverMade(t *testing.T) {
	n := newNode(t)
	n.must(os.Remove(n.dir))
	n.dir = filepath.Join(n.dir, "deep", "down")
	n.open().run()
	n.must(os.MkdirAll(n.dir, 0o755))
	n.write("a.yaml", text("one", "1"))
	n.shows("one=1@a.yaml")
	n.ready()
}

// Links: a file elsewhere, and the way in which a mounted ConfigMap changes.
func TestLinks(t *testing.T) {
	n := newNode(t)
	n.rescan = 20 * time.Millisecond
	n.must(os.Mkdir(n.path("..1"), 0o755))
	n.must(os.Mkdir(n.path("..2"), 0o755))
	n.write("..1/a.yaml", text("one", "1"))
	n.write("..2/a.yaml", text("one", "2"))
	n.must(os.Symlink("..1", n.path("..data")))
	n.must(os.Symlink("..data/a.yaml", n.path("a.yaml")))
	n.open().run().ready()
	n.shows("one=1@a.yaml")
	n.must(os.Symlink("..2", n.path("..next")))
	n.must(os.Rename(n.path("..next"), n.path("..data")))
	n.shows("one=2@a.yaml")
	other := filepath.Join(t.TempDir(), "other")
	n.must(os.WriteFile(other, []byte(text("two", "1")), 0o644))
	n.must(os.Symlink(other, n.path("b.yaml")))
	n.shows("one=2@a.yaml", "two=1@b.yaml")
	n.must(os.WriteFile(other, []byte(text("two", "2")), 0o644)) // of which only the rescan knows
	n.shows("one=2@a.yaml", "two=2@b.yaml")
	n.must(os.Remove(other))
	n.shows("one=2@a.yaml")
	n.must(os.Link(n.path("..2/a.yaml"), n.path("c.yaml")))
	n.faulty("c.yaml:2: ConfigMap default/one is declared by a.yaml already")
}

// What is no file neither holds up the others nor ends anything.
func TestWhatIsNoFile(t *testing.T) {
	n := newNode(t)
	n.must(unix.Mkfifo(n.path("pipe.yaml"), 0o600))
	n.must(os.Mkdir(n.path("dir.yaml"), 0o755))
	n.write("a.yaml", text("one", "1"))
	n.open().run().ready()
	n.shows("one=1@a.yaml")
	if faults := n.store.Faults(); len(faults) != 1 || filepath.Base(faults[0].File) != "pipe.yaml" {
		t.Errorf("%v", faults)
	}
}

// Who has no watch left still has the rescan.
func TestWithoutInotify(t *testing.T) {
	n := newNode(t)
	n.rescan = 10 * time.Millisecond
	n.open()
	w := &watcher{s: n.store, ctx: t.Context(), eyes: n.store.paths.Reader(t.Context(), nil), seen: map[string]stamp{}, dirs: map[int32]string{}}
	n.write("a.yaml", text("one", "1"))
	w.scan()
	n.shows("one=1@a.yaml")
	n.write("a.yaml", text("one", "2"))
	w.scan() // it may still be written
	n.shows("one=1@a.yaml")
	old := time.Now().Add(-time.Hour)
	n.must(os.Chtimes(n.path("a.yaml"), old, old))
	w.scan()
	n.shows("one=2@a.yaml")
	// A file of a time that is yet to come does not wait for it.
	n.write("a.yaml", text("one", "3"))
	later := time.Now().Add(time.Hour)
	n.must(os.Chtimes(n.path("a.yaml"), later, later))
	w.scan()
	n.shows("one=3@a.yaml")
}

// The folder of another configuration declares nothing any more.
func TestFolderIsConfiguredAway(t *testing.T) {
	n := newNode(t)
	n.write("a.yaml", text("one", "1"))
	n.open().run().ready()
	n.shows("one=1@a.yaml")
	n.stop()
	n.noFolder = true
	n.open().run().ready()
	n.shows()
}

// What is the node's and in no namespace is kept as all else is; what is declared together reaches the pods of it last.
func TestVolumes(t *testing.T) {
	n := newNode(t).open().run()
	n.ready()
	const volume = "---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {name: v}\nspec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, hostPath: {path: /x}}\n"
	const pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n"
	n.sub.Take()
	done, err := n.store.Apply(objects(t, pod, volume))
	if err != nil || len(done) != 2 || done[0].Key.Kind != manifest.Pod || done[1].Result != "created" {
		t.Fatalf("%+v, %v", done, err)
	}
	k := manifest.Key{Kind: manifest.Volume, Name: "v"}
	first, ok := n.store.Get(k)
	if !ok || first.Volume.UID == "" || first.Volume.UID != first.UID || first.Volume.CreationTimestamp.IsZero() {
		t.Fatalf("%+v, %v", first, ok)
	}
	n.restart()
	if again, ok := n.store.Get(k); !ok || again.UID != first.UID || again.Lost != nil || again.Volume == nil {
		t.Errorf("after a restart: %+v, %v", again, ok)
	}
	n.must(n.store.Delete(k))
	n.restart()
	if _, ok := n.store.Get(k); ok {
		t.Error("it is there again")
	}
	all := objects(t, pod, text("m", "1"), volume)
	slices.SortStableFunc(all, podsLast)
	if all[0].ConfigMap == nil || all[1].Volume == nil || all[2].Pod == nil {
		t.Errorf("the order is %v, %v, %v", all[0].Key, all[1].Key, all[2].Key)
	}
}

// Who knows more of an object may refuse what it is to become.
func TestVet(t *testing.T) {
	n := newNode(t).open().run()
	n.ready()
	n.store.mu.Lock()
	n.store.vet = func(was, is manifest.Object) error {
		if is.ConfigMap.Data["v"] == "no" {
			return fmt.Errorf("%s stays %s", was.Name, was.ConfigMap.Data["v"])
		}
		return nil
	}
	n.store.mu.Unlock()
	n.write("a.yaml", text("a", "1"))
	n.shows("a=1@a.yaml")
	n.write("a.yaml", text("a", "no"))
	n.faulty("a.yaml:2: a stays 1")
	n.stays("a=1@a.yaml")
	if _, err := n.store.Apply(objects(t, text("b", "1"))); err != nil {
		t.Fatal(err)
	}
	if _, err := n.store.Apply(objects(t, text("b", "no"))); err == nil || !strings.Contains(err.Error(), "b stays 1") {
		t.Error(err)
	}
}
