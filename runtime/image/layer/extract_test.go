package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"
)

// odd is an archive of what archives can have: each entry with what the one before could have spoilt for it.
func odd(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	clock := int64(1_000_000_000)
	put := func(h tar.Header, body string) {
		clock++
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(clock, 123)
		}
		h.Size, h.Format = int64(len(body)), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string, mode int64, body string) {
		put(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, body)
	}
	dir := func(name string, mode int64, uid int) {
		put(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Uid: uid, Gid: uid}, "")
	}
	link := func(kind byte, name, to string) {
		put(tar.Header{Typeflag: kind, Name: name, Linkname: to, Mode: 0o777}, "")
	}
	dir(".", 0o700, 5) // the root is left alone
	file("implied/parents/file", 0o644, "content")
	file("./dot/file", 0o600, "content")
	file("/absolute", 0o444, "content")
	file("../../outside", 0o644, "stays inside")
	dir("own", 0o2750, 1000)
	file("own/group-of-the-folder", 0o640, "the archive's group counts, not the folder's")
	file("setuid", 0o6755, "program")
	put(tar.Header{Typeflag: tar.TypeReg, Name: "other", Mode: 0o4711, Uid: 7, Gid: 8, PAXRecords: map[string]string{
		paxXattr + "user.berth": "value", paxXattr + "trusted.overlay.opaque": "y",
		paxXattr + "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	}}, "program")
	file("large", 0o644, strings.Repeat("0123456789abcdef", 3*smallFile/16)+"end")
	file("exact", 0o644, strings.Repeat("x", smallFile))
	file("empty", 0, "")
	file("own/linked", 0o640, "x")
	link(tar.TypeLink, "hard", "own/linked")
	link(tar.TypeLink, "hard-absolute", "/absolute")
	file("twice", 0o600, "first, and longer")
	file("twice", 0o644, "second")
	file("file-then-folder", 0o644, "x")
	dir("file-then-folder", 0o711, 0)
	file("file-then-folder/in", 0o644, "x")
	file("folder-then-file/in", 0o644, "x")
	file("folder-then-file", 0o644, "x")
	dir("again", 0o700, 1)
	file("again/kept", 0o644, "x")
	dir("again", 0o755, 2)
	dir("target", 0o755, 0)
	link(tar.TypeSymlink, "through", "/target")
	file("through/a", 0o644, "in target")
	dir("elsewhere", 0o755, 0)
	file("through/b", 0o644, "in target")
	link(tar.TypeSymlink, "through", "elsewhere")
	file("through/c", 0o644, "elsewhere")
	link(tar.TypeSymlink, "up", "../../../..")
	file("up/b", 0o644, "in the root")
	dir("moved", 0o755, 0)
	file("moved/one", 0o644, "in the folder")
	link(tar.TypeSymlink, "moved", "target") // replaces the folder that the last file went to
	file("moved/two", 0o644, "in target")
	link(tar.TypeSymlink, "dangling", "not/there")
	file("dangling/c", 0o644, "makes what the link means")
	link(tar.TypeSymlink, "last", "target/a")
	file("last", 0o644, "replaces the link, and not what it leads to")
	put(tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, "")
	put(tar.Header{Typeflag: tar.TypeBlock, Name: "dev/block", Mode: 0o660, Devmajor: 7, Devminor: 300, Gid: 6}, "")
	put(tar.Header{Typeflag: tar.TypeFifo, Name: "dev/fifo", Mode: 0o600}, "")
	put(tar.Header{Typeflag: tar.TypeReg, Name: "old", Mode: 0o644, ModTime: time.Unix(-5, 0)}, "x")
	put(tar.Header{Typeflag: tar.TypeReg, Name: "read", Mode: 0o644, AccessTime: time.Unix(2_000_000_000, 0)}, "x")
	file("gone/.wh.file", 0o644, "")
	file(".wh.hidden", 0o644, "")
	file("hidden/new", 0o644, "after its whiteout")
	file("replaced/.wh.file", 0o644, "")
	file("replaced/file", 0o644, "after its whiteout")
	dir("opaque", 0o755, 0)
	file("opaque/.wh..wh..opq", 0o644, "")
	file(".wh..wh.plnk/1", 0o644, "metadata of AUFS")
	for i := range 3 * pendingFiles {
		file(fmt.Sprintf("many/%d", i), 0o644, fmt.Sprint(i))
	}
	link(tar.TypeLink, "many/hard", fmt.Sprintf("many/%d", 3*pendingFiles-1)) // of a file that is perhaps not written yet
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// aloneApplier returns one with a tree of its own.
func aloneApplier(t *testing.T) *applier {
	t.Helper()
	in := &ingest{store: openStore(t), dir: t.TempDir()}
	if err := os.Mkdir(in.tree(), 0o755); err != nil {
		t.Fatal(err)
	}
	return newApplier(in)
}

// applyBy unpacks the archive with a fresh applier and tells the tree, one line for each thing in it.
func applyBy(t *testing.T, extract func(a *applier) error) string {
	t.Helper()
	a := aloneApplier(t)
	a.base = false
	tree := a.tree
	if err := os.Chmod(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := extract(a); err != nil {
		t.Fatal(err)
	}
	return tell(t, tree)
}

func tell(t *testing.T, tree string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(tree, func(p string, d iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(tree, p)
		fmt.Fprintf(&out, "%s %o %d:%d links %d", name, st.Mode, st.Uid, st.Gid, st.Nlink)
		if name != "." && explicitTimes(name) {
			fmt.Fprintf(&out, " modified %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			body, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %.20q… (%d)", body, len(body))
		case unix.S_IFLNK:
			to, _ := os.Readlink(p)
			fmt.Fprintf(&out, " -> %s", to)
		case unix.S_IFCHR, unix.S_IFBLK:
			fmt.Fprintf(&out, " device %d", st.Rdev)
		}
		names := make([]byte, 4096)
		n, err := unix.Llistxattr(p, names)
		if err != nil {
			return err
		}
		for _, key := range slices.Sorted(strings.FieldsFuncSeq(string(names[:n]), func(r rune) bool { return r == 0 })) {
			value := make([]byte, 256)
			n, err := unix.Lgetxattr(p, key, value)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %s=%q", key, value[:n])
		}
		fmt.Fprintln(&out)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// explicitTimes: the folders that the archive only implies, and whiteouts, are as old as the test.
func explicitTimes(name string) bool {
	return !slices.Contains([]string{"implied", "implied/parents", "dot", "dev", "gone", "gone/file", "replaced", "many", "hidden", "not", "not/there"}, name)
}

func TestExtractLikeContainerd(t *testing.T) {
	needRoot(t)
	old := syscall.Umask(0o027) // makes no difference
	defer syscall.Umask(old)
	data := odd(t)
	want := applyBy(t, func(a *applier) error {
		_, err := archive.Apply(t.Context(), a.tree, bytes.NewReader(data), archive.WithFilter(a.filter), archive.WithConvertWhiteout(a.whiteout))
		return err
	})
	got := applyBy(t, func(a *applier) error { return a.extract(t.Context(), bytes.NewReader(data)) })
	if got == want {
		return
	}
	wanted, have := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(wanted), len(have)) {
		if i >= len(wanted) || i >= len(have) || wanted[i] != have[i] {
			t.Fatalf("line %d\n got %q\nwant %q", i, have[min(i, len(have)-1)], wanted[min(i, len(wanted)-1)])
		}
	}
}

// What is wrong with an archive is an error of the extraction, and no descriptor stays open.
func TestExtractFails(t *testing.T) {
	needRoot(t)
	file := entry{name: "file", body: strings.Repeat("x", 5000)}
	cases := map[string]io.Reader{
		"below a file":       bytes.NewReader(archiveOf(t, []entry{file, {name: "file/below", body: "x"}})),
		"folder below":       bytes.NewReader(archiveOf(t, []entry{file, {name: "file/below/"}})),
		"whiteout of nobody": bytes.NewReader(archiveOf(t, []entry{{name: "dir/.wh."}})),
		"whiteout of parent": bytes.NewReader(archiveOf(t, []entry{{name: "dir/.wh..."}})),
		"link to nothing":    bytes.NewReader(archiveOf(t, []entry{{name: "a", link: "b"}})),
		"cut":                io.LimitReader(bytes.NewReader(archiveOf(t, []entry{{name: "first", body: "x"}, file})), 3000),
		"read error":         io.MultiReader(io.LimitReader(bytes.NewReader(archiveOf(t, []entry{file, file})), 3000), iotest.ErrReader(errors.New("broken"))),
		"attribute":          bytes.NewReader(archiveOf(t, []entry{{name: "a", body: "x", xattr: strings.Repeat("x", 70_000)}, file})),
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			before := openFiles(t)
			a := aloneApplier(t)
			if err := a.extract(t.Context(), data); err == nil {
				t.Error("no error")
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d descriptors are open, %d were before", after, before)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

func TestExtractEndsWithContext(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := aloneApplier(t)
	err := a.extract(ctx, bytes.NewReader(archiveOf(t, []entry{{name: "a", body: "x"}})))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A read-ahead gives what is read through it whole, then its error; after Close nothing is read.
func TestReadAhead(t *testing.T) {
	broken := errors.New("broken")
	data := bytes.Repeat([]byte("0123456789"), aheadChunk/4)
	a := newReadAhead(io.MultiReader(iotest.OneByteReader(bytes.NewReader(data[:1000])), bytes.NewReader(data[1000:]), iotest.ErrReader(broken)))
	got, err := io.ReadAll(a)
	if !errors.Is(err, broken) || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes of %d, error %v", len(got), len(data), err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, broken) {
		t.Errorf("the next Read: %v", err)
	}
	a.Close()

	endless := &counter{}
	a = newReadAhead(endless)
	if _, err := io.ReadFull(a, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	a.Close()
	after := endless.n
	time.Sleep(10 * time.Millisecond)
	if endless.n != after {
		t.Error("it is read after Close")
	}
}

// counter is an endless reader.
type counter struct{ n int }

func (c *counter) Read(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}
