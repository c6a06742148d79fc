package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	iofs "io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// needRoot skips tests that make device nodes, trusted attributes and mounts.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// entry is one entry of an archive. A name that ends in "/" is a directory.
type entry struct {
	name     string
	body     string
	mode     int64 // 0 is 0644, or 0755 for a directory
	uid      int
	link     string // hard link
	symlink  string
	xattr    string // value of user.berth
	modified int64  // Unix time; 0 is 1000
}

func archiveOf(t testing.TB, entries []entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.uid, Size: int64(len(e.body)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		h.ModTime = time.Unix(max(e.modified, 1000), 0)
		switch {
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.link
		case e.symlink != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.symlink
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if e.xattr != "" {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.berth": e.xattr}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func opener(b []byte) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// unpackAll unpacks archives on top of each other, the topmost first: none may need what lies below until it asks. It
// returns the chain.
func unpackAll(t *testing.T, s *Store, archives ...[]byte) []digest.Digest {
	t.Helper()
	var diffs []digest.Digest
	for _, a := range archives {
		diffs = append(diffs, digest.FromBytes(a))
	}
	chain := identity.ChainIDs(append([]digest.Digest(nil), diffs...))
	errs := make(chan error, len(archives))
	committed := make([]chan struct{}, len(archives))
	for i := range archives {
		committed[i] = make(chan struct{})
	}
	for i := len(archives) - 1; i >= 0; i-- {
		req := UnpackRequest{ChainID: chain[i], DiffID: diffs[i], Open: opener(archives[i])}
		if i > 0 {
			req.Below = func(context.Context) ([]digest.Digest, error) {
				<-committed[i-1]
				return chain[:i], nil
			}
		}
		go func() {
			_, err := s.Unpack(t.Context(), req)
			close(committed[i])
			errs <- err
		}()
	}
	for range archives {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	return chain
}

// describe lists a tree: mode, owner, attributes and content of all that is in it, and which files are one.
func describe(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, d iofs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		rel := strings.TrimPrefix(p, root)
		fmt.Fprintf(&b, "%s %v %d:%d", rel, fi.Mode(), st.Uid, st.Gid)
		var val [64]byte
		if n, err := syscall.Getxattr(p, "user.berth", val[:]); err == nil && !isLink(fi) {
			fmt.Fprintf(&b, " xattr=%s", val[:n])
		}
		switch {
		case isLink(fi):
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", to)
		case fi.Mode().IsRegular():
			if first, ok := inodes[st.Ino]; ok {
				fmt.Fprintf(&b, " = %s", first)
				break
			}
			inodes[st.Ino] = rel
			body, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", body)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func isLink(fi os.FileInfo) bool { return fi.Mode()&os.ModeSymlink != 0 }

func TestUnpackVerifies(t *testing.T) {
	good := archiveOf(t, []entry{{name: "f", uid: os.Getuid(), body: "content"}})
	other := archiveOf(t, []entry{{name: "f", uid: os.Getuid(), body: "forged!"}})
	tests := []struct {
		name string
		body []byte
		max  int64
		want string
	}{
		{"another archive", other, 0, "the uncompressed archive is " + digest.FromBytes(other).String()},
		{"cut off", good[:515], 0, "unexpected EOF"},
		{"cut off gzip", gzipped(t, good)[:40], 0, "unexpected EOF"},
		{"no archive", []byte(strings.Repeat("nonsense", 200)), 0, "invalid tar header"},
		{"too large", good, 600, "larger than 600 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			id := digest.FromBytes(good)
			_, err := s.Unpack(t.Context(), UnpackRequest{ChainID: id, DiffID: id, Open: opener(tt.body), MaxBytes: tt.max})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got error %v, want %q", err, tt.want)
			}
			if s.Has(id) {
				t.Error("the layer is there")
			}
			wantEmptyIngest(t, s)
			if b, n := s.Usage(); b != 0 || n != 0 {
				t.Errorf("usage is %d bytes, %d inodes", b, n)
			}
		})
	}
}

func wantEmptyIngest(t *testing.T, s *Store) {
	t.Helper()
	left, err := os.ReadDir(s.path("ingest"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstded(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'}) // behind a skippable frame
}

func TestRoundTrip(t *testing.T) {
	uid := os.Getuid()
	plain := archiveOf(t, []entry{
		{name: "./", uid: uid},
		{name: "d/", uid: uid}, {name: "d/", uid: uid}, // twice, as some tools do
		{name: "d/file", uid: uid, body: strings.Repeat("x", 5000)},
		{name: "link", uid: uid, link: "d/file"},
		{name: "sym", uid: uid, symlink: "d"},
		{name: "sym/through", uid: uid, body: "through the link"},
	})
	plain = append(plain, make([]byte, 3000)...) // more padding than needed
	for name, body := range map[string][]byte{"plain": plain, "gzip": gzipped(t, plain), "zstd": zstded(t, plain)} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			id := digest.FromBytes(plain)
			info, err := s.Unpack(t.Context(), UnpackRequest{ChainID: id, DiffID: id, Open: opener(body)})
			if err != nil {
				t.Fatal(err)
			}
			if info.TarSize != int64(len(plain)) {
				t.Errorf("size of the archive is %d, want %d", info.TarSize, len(plain))
			}
			var got bytes.Buffer
			if err := s.WriteTar(t.Context(), id, &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), plain) {
				t.Error("the archive came out different")
			}
		})
	}
}

func TestWriteTarNoticesChanges(t *testing.T) {
	s := openStore(t)
	a := archiveOf(t, []entry{{name: "f", uid: os.Getuid(), body: "content"}})
	chain := unpackAll(t, s, a)
	if err := os.WriteFile(filepath.Join(s.treeDir(chain[0]), "f"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteTar(t.Context(), chain[0], io.Discard); err == nil {
		t.Error("a changed layer was written as if it were the old one")
	}
}

func TestReopen(t *testing.T) {
	s := openStore(t)
	uid := os.Getuid()
	chain := unpackAll(t, s,
		archiveOf(t, []entry{{name: "a", uid: uid, body: strings.Repeat("a", 5000)}}),
		archiveOf(t, []entry{{name: "b", uid: uid, body: "b"}}),
		archiveOf(t, []entry{{name: "c", uid: uid, body: "c"}}))
	bytes, inodes := s.Usage()
	if bytes < 8192 || inodes < 9 {
		t.Errorf("usage is %d bytes, %d inodes", bytes, inodes)
	}
	if err := os.MkdirAll(s.path("ingest", "unpack-1", "fs"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.layerDir(chain[2]), infoName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Killed before it was noted that the first start after a boot is over, the next one is a first start too.
	if again, err := Open(s.dir, slog.New(slog.DiscardHandler)); err != nil || !again.Rebooted() {
		t.Errorf("the first start was cut off, and the next one does not know of the boot (%v)", err)
	}
	if err := s.NoteBoot(); err != nil {
		t.Fatal(err)
	}
	r, err := Open(s.dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	wantEmptyIngest(t, r)
	if !r.Has(chain[0]) || !r.Has(chain[1]) {
		t.Error("layers are lost")
	}
	if r.Has(chain[2]) {
		t.Error("a damaged layer is there")
	}
	if r.Rebooted() || !s.Rebooted() {
		t.Errorf("reboot: first %v, then %v", s.Rebooted(), r.Rebooted())
	}
	if err := r.Remove(chain[1]); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(chain[1]); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if r.Has(chain[1]) {
		t.Error("a removed layer is there")
	}
	wantEmptyIngest(t, r)
}

func TestUnpackEndsWithContext(t *testing.T) {
	s := openStore(t)
	id := digest.FromString("never")
	ctx, cancel := context.WithCancel(t.Context())
	body, feed := io.Pipe()
	context.AfterFunc(ctx, func() { feed.CloseWithError(ctx.Err()) })
	done := make(chan error, 1)
	go func() {
		_, err := s.Unpack(ctx, UnpackRequest{ChainID: id, DiffID: id,
			Open: func(context.Context) (io.ReadCloser, error) { return body, nil }})
		done <- err
	}()
	if _, err := feed.Write(archiveOf(t, []entry{{name: "f", uid: os.Getuid(), body: "x"}})[:600]); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("no error")
	}
	wantEmptyIngest(t, s)
}
