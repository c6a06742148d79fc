package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// A canary is a tree around a store that nothing may touch.
type canary struct {
	dir    string
	store  *Store
	before string
}

func newCanary(t *testing.T) *canary {
	t.Helper()
	c := &canary{dir: t.TempDir()}
	outside := filepath.Join(c.dir, "outside")
	if err := os.MkdirAll(filepath.Join(outside, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{filepath.Join(outside, "secret"), filepath.Join(outside, "sub", "file"), filepath.Join(c.dir, "escape")} {
		if err := os.WriteFile(p, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if c.store, err = Open(filepath.Join(c.dir, "store"), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	c.before = c.look(t)
	return c
}

// look describes all that is outside of the trees of layers, down to links, times and attributes.
func (c *canary) look(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(c.dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == c.store.path("layers") || p == c.store.path("ingest") {
			names, err := unix.Listxattr(p, make([]byte, 1000))
			fmt.Fprintf(&b, "%s %d\n", p, names)
			return errors.Join(err, filepath.SkipDir)
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		attributes := make([]byte, 1000)
		n, _ := unix.Llistxattr(p, attributes)
		fmt.Fprintf(&b, "%s %v %d:%d links=%d size=%d %v %q\n", p, fi.Mode(), st.Uid, st.Gid, st.Nlink, fi.Size(), fi.ModTime(), attributes[:max(n, 0)])
		return nil
	})
	if err != nil && !errors.Is(err, filepath.SkipDir) {
		t.Fatal(err)
	}
	return b.String()
}

// check fails the test if anything changed outside, or something half made is left.
func (c *canary) check(t *testing.T) {
	t.Helper()
	if after := c.look(t); after != c.before {
		t.Errorf("outside of the layers it was\n%sand is\n%s", c.before, after)
	}
	wantEmptyIngest(t, c.store)
}

// unpack unpacks an archive, by itself and on top of a layer with a folder d and a file f.
func (c *canary) unpack(t *testing.T, archive []byte, max int64) (alone, onTop error) {
	t.Helper()
	base := archiveOf(t, []entry{{name: "d/"}, {name: "d/inner", body: "i"}, {name: "f", body: "f"}, {name: "out", symlink: "../../../../outside"}})
	below := digest.FromBytes(base)
	if _, err := c.store.Unpack(t.Context(), UnpackRequest{ChainID: below, DiffID: below, Open: opener(base)}); err != nil {
		t.Fatal(err)
	}
	id := digest.FromBytes(archive)
	_, alone = c.store.Unpack(t.Context(), UnpackRequest{ChainID: digest.FromString("alone"), DiffID: id, Open: opener(archive), MaxBytes: max})
	_, onTop = c.store.Unpack(t.Context(), UnpackRequest{
		ChainID: digest.FromString("on top"), DiffID: id, Open: opener(archive), MaxBytes: max,
		Below: func(context.Context) ([]digest.Digest, error) { return []digest.Digest{below}, nil },
	})
	return alone, onTop
}

// raw is an archive of headers that archiveOf does not write.
func raw(t *testing.T, headers ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Format == 0 {
			h.Format = tar.FormatPAX
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.ModTime = time.Unix(1000, 0)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Archives that try to reach what is not theirs. They are refused, or what they hold lands in their layer; outside of it
// nothing changes.
func TestHostileArchives(t *testing.T) {
	needRoot(t)
	const served = "" // the archive is taken: what it tries has no effect outside
	up := strings.Repeat("../", 12)
	outside := func(c *canary) string { return filepath.Join(c.dir, "outside") }
	for name, tt := range map[string]struct {
		archive func(*canary) []byte
		want    string // a part of the error
		top     string // the same on top of another layer, if it differs
		has     string // a path that the layer then has
	}{
		"absolute path": {func(*canary) []byte { return archiveOf(t, []entry{{name: "/escape", body: "x"}}) }, served, served, "escape"},
		"parent path":   {func(*canary) []byte { return archiveOf(t, []entry{{name: up + "escape", body: "x"}}) }, served, served, "escape"},
		"parent inside": {func(*canary) []byte { return archiveOf(t, []entry{{name: "a/b/" + up + "escape", body: "x"}}) }, served, served, "escape"},
		"parent folder": {func(*canary) []byte {
			return archiveOf(t, []entry{{name: "../", mode: 0o777}, {name: "..", body: "x"}})
		}, "?", "?", ""},
		"through a symlink": {func(c *canary) []byte {
			return archiveOf(t, []entry{{name: "l", symlink: outside(c)}, {name: "l/secret", body: "x"}})
		}, served, served, ""},
		"through a relative symlink": {func(*canary) []byte {
			return archiveOf(t, []entry{{name: "l", symlink: up + "outside"}, {name: "l/new", body: "x"}})
		}, served, served, "outside/new"},
		"through the symlink of a layer below": {func(*canary) []byte { return archiveOf(t, []entry{{name: "out/new", body: "x"}}) }, served, served, "out/new"},
		"symlinks in a circle": {func(*canary) []byte {
			return archiveOf(t, []entry{{name: "a", symlink: "b"}, {name: "b", symlink: "a"}, {name: "a/x", body: "x"}})
		}, "?", "?", ""},
		"file in place of a symlink": {func(c *canary) []byte {
			return archiveOf(t, []entry{{name: "l", symlink: outside(c) + "/secret"}, {name: "l", body: "x"}})
		}, served, served, "l"},
		"folder in place of a symlink": {func(c *canary) []byte {
			return archiveOf(t, []entry{{name: "l", symlink: outside(c)}, {name: "l/", mode: 0o777, uid: 7}, {name: "l/secret", body: "x"}})
		}, "?", "?", ""},
		"hard link outside":     {func(c *canary) []byte { return archiveOf(t, []entry{{name: "h", link: outside(c) + "/secret"}}) }, "?", "?", ""},
		"hard link to a parent": {func(*canary) []byte { return archiveOf(t, []entry{{name: "h", link: up + "escape"}}) }, "?", "?", ""},
		"hard link by a symlink": {func(c *canary) []byte {
			return archiveOf(t, []entry{{name: "l", symlink: outside(c)}, {name: "h", link: "l/secret"}})
		}, "?", "?", ""},
		"hard link below": {func(*canary) []byte { return archiveOf(t, []entry{{name: "h", link: "out/secret"}}) }, "?", "?", ""},
		"writing by a linked symlink": {func(c *canary) []byte {
			return archiveOf(t, []entry{{name: "l", symlink: outside(c) + "/secret"}, {name: "h", link: "l"}, {name: "h", body: "x"}})
		}, served, served, "h"},
		"whiteout of nothing":    {func(*canary) []byte { return archiveOf(t, []entry{{name: ".wh."}}) }, "hides no file", "", ""},
		"whiteout of the folder": {func(*canary) []byte { return archiveOf(t, []entry{{name: "d/.wh.."}}) }, "hides no file", "", ""},
		"whiteout of the parent": {func(*canary) []byte { return archiveOf(t, []entry{{name: ".wh..."}}) }, "hides no file", "", ""},
		"whiteout of the parent, with a link": {func(*canary) []byte {
			return archiveOf(t, []entry{{name: "h", link: "f"}, {name: ".wh..."}})
		}, "?", "hides no file", ""},
		"whiteout by a symlink": {func(c *canary) []byte {
			return archiveOf(t, []entry{{name: "l", symlink: outside(c)}, {name: "l/.wh.secret"}})
		}, served, served, ""},
		"opaque by a symlink": {func(c *canary) []byte {
			return archiveOf(t, []entry{{name: "l", symlink: outside(c)}, {name: "l/.wh..wh..opq"}})
		}, "?", "?", ""},
		"opaque by a symlink below": {func(*canary) []byte { return archiveOf(t, []entry{{name: "out/.wh..wh..opq"}}) }, "?", "?", ""},
		"opaque of a file":          {func(*canary) []byte { return archiveOf(t, []entry{{name: "g", body: "x"}, {name: "g/.wh..wh..opq"}}) }, "not a directory", "", ""},
		"whiteouts of whiteouts": {func(*canary) []byte {
			return archiveOf(t, []entry{{name: ".wh..wh.plnk"}, {name: ".wh..wh.aufs/x", body: "x"}})
		}, served, served, ""},
		"device nodes": {func(*canary) []byte {
			return raw(t, &tar.Header{Name: "mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}, &tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 8},
				&tar.Header{Name: "pipe", Typeflag: tar.TypeFifo}, &tar.Header{Name: "pipe", Typeflag: tar.TypeReg, Size: 3})
		}, served, served, "mem"},
		"a whiteout of overlayfs": {func(*canary) []byte { return raw(t, &tar.Header{Name: "f", Typeflag: tar.TypeChar}) }, served, served, "f"},
		"attributes of overlayfs": {func(*canary) []byte {
			return raw(t, &tar.Header{Name: "r", Typeflag: tar.TypeReg, PAXRecords: map[string]string{
				"SCHILY.xattr.trusted.overlay.redirect": "/" + up + "etc/shadow", "SCHILY.xattr.trusted.overlay.metacopy": ""}})
		}, served, served, "r"},
		"duplicates": {func(*canary) []byte {
			return archiveOf(t, []entry{{name: "x", body: "1"}, {name: "x/"}, {name: "x/y", body: "2"}, {name: "x", symlink: "/"}, {name: "x", body: "3"}})
		}, "?", "?", ""},
		"long name": {func(*canary) []byte { return archiveOf(t, []entry{{name: strings.Repeat("n", 300), body: "x"}}) }, "file name too long", "", ""},
		"long path": {func(*canary) []byte {
			return archiveOf(t, []entry{{name: strings.Repeat("n/", 5000) + "x", body: "x"}})
		}, "file name too long", "", ""},
		"strange names": {func(*canary) []byte {
			return archiveOf(t, []entry{{name: "\xff\xfe\n", body: "x"}, {name: " ", body: "x"}})
		}, served, served, " "},
		"large owner": {func(*canary) []byte {
			return raw(t, &tar.Header{Name: "o", Typeflag: tar.TypeReg, Uid: math.MaxUint32, Gid: math.MaxUint32})
		}, "?", "?", ""},
		"unknown types": {func(*canary) []byte {
			return raw(t, &tar.Header{Name: "c", Typeflag: tar.TypeCont, Format: tar.FormatUSTAR})
		}, "?", "?", ""},
		"larger than it": {func(*canary) []byte { return raw(t, &tar.Header{Name: "big", Typeflag: tar.TypeReg, Size: 4096})[:512] }, "unexpected EOF", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCanary(t)
			alone, onTop := c.unpack(t, tt.archive(c), 0)
			if tt.top == "" && tt.want != served {
				tt.top = tt.want
			}
			for _, got := range []struct {
				where string
				err   error
				want  string
			}{{"alone", alone, tt.want}, {"on top", onTop, tt.top}} {
				switch {
				case got.want == "?": // either; what counts is what it did
				case got.want == served && got.err != nil:
					t.Errorf("%s: %v", got.where, got.err)
				case got.want != served && (got.err == nil || !strings.Contains(got.err.Error(), got.want)):
					t.Errorf("%s: %v, want %q", got.where, got.err, got.want)
				}
			}
			if tt.has != "" {
				if _, err := os.Lstat(filepath.Join(c.store.treeDir(digest.FromString("alone")), tt.has)); err != nil {
					t.Error(err)
				}
			}
			c.check(t)
		})
	}
}

// An image has no say in where overlayfs looks for the content of its files.
func TestOverlayAttributesAreDropped(t *testing.T) {
	needRoot(t)
	c := newCanary(t)
	records := map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.redirect": "/etc", "SCHILY.xattr.user.other": "kept"}
	a := raw(t, &tar.Header{Name: "r", Typeflag: tar.TypeReg, PAXRecords: records})
	id := digest.FromBytes(a)
	if _, err := c.store.Unpack(t.Context(), UnpackRequest{ChainID: id, DiffID: id, Open: opener(a)}); err != nil {
		t.Fatal(err)
	}
	attributes := make([]byte, 1000)
	n, err := unix.Llistxattr(filepath.Join(c.store.treeDir(id), "r"), attributes)
	if got := string(attributes[:max(n, 0)]); err != nil || strings.Contains(got, "trusted.overlay") || !strings.Contains(got, "user.other") {
		t.Errorf("attributes %q, %v", got, err)
	}
}

// Archives that are small on the wire and large on disk, or in memory.
func TestBombs(t *testing.T) {
	for name, tt := range map[string]struct {
		write func(io.Writer) error
		max   int64
		want  string
	}{
		"gzip of zeros": {func(w io.Writer) error {
			z := gzip.NewWriter(w)
			tw := tar.NewWriter(z)
			err := tw.WriteHeader(&tar.Header{Name: "zeros", Size: 1 << 40, Mode: 0o600, Uid: os.Getuid(), Gid: os.Getgid()})
			if err == nil {
				_, err = io.Copy(tw, zeros{})
			}
			return err
		}, 64 << 20, "larger than 67108864 bytes"},
		"padding without end": {func(w io.Writer) error {
			z := gzip.NewWriter(w)
			_, err := io.Copy(z, zeros{})
			return err
		}, 64 << 20, "larger than 67108864 bytes"},
		"sparse file": {func(w io.Writer) error { _, err := w.Write(sparse(1 << 45)); return err }, 64 << 20, "larger than 67108864 bytes"},
		"disk":        {func(w io.Writer) error { _, err := w.Write(sparse(1 << 60)); return err }, 0, "no space left"},
		"window": {func(w io.Writer) error {
			_, err := w.Write([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 0, 0, 0})
			return err
		}, 0, "window size exceeded"},
		"attributes": {func(w io.Writer) error {
			tw := tar.NewWriter(w)
			for i := range 1000 {
				h := &tar.Header{Name: fmt.Sprintf("d%d/", i), Typeflag: tar.TypeDir, Mode: 0o755, Uid: os.Getuid(), Gid: os.Getgid(),
					PAXRecords: map[string]string{"BERTH.bomb": strings.Repeat("x", 1<<20-100)}}
				if err := tw.WriteHeader(h); err != nil {
					return err
				}
			}
			return nil
		}, 0, "names and attributes"},
		"one attribute": {func(w io.Writer) error {
			var b bytes.Buffer
			tw := tar.NewWriter(&b)
			h := &tar.Header{Name: "x", Typeflag: tar.TypeReg, Mode: 0o600, PAXRecords: map[string]string{"BERTH.bomb": strings.Repeat("x", 1<<20-100)}}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			head := b.Bytes()[:512]
			copy(head[124:136], "77777777777\x00") // its size: 8 GiB, in octal
			copy(head[148:156], "        ")
			sum := 0
			for _, c := range head {
				sum += int(c)
			}
			copy(head[148:156], fmt.Sprintf("%06o\x00 ", sum))
			if _, err := w.Write(head); err != nil {
				return err
			}
			_, err := io.CopyN(w, zeros{}, 8<<30)
			return err
		}, 0, "header field too long"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCanary(t)
			peak := watchHeap(t)
			id := digest.FromString("never")
			_, err := c.store.Unpack(t.Context(), UnpackRequest{ChainID: id, DiffID: id, MaxBytes: tt.max, Open: func(context.Context) (io.ReadCloser, error) {
				r, w := io.Pipe()
				go func() { w.CloseWithError(tt.write(w)) }()
				return r, nil
			}})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if most := peak(); most > 800<<20 {
				t.Errorf("%d MiB of memory", most>>20)
			}
			c.check(t)
			if bytes, _ := c.store.Usage(); bytes != 0 {
				t.Errorf("%d bytes are accounted for", bytes)
			}
		})
	}
}

// sparse is an archive with one file of nothing but a hole, in the form of GNU tar 1.0 in PAX.
func sparse(size int64) []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	data := make([]byte, 512)
	copy(data, fmt.Sprintf("1\n%d\n0\n", size))
	// The writer refuses the records of sparse files, so another key is written in their place.
	records := map[string]string{"XNU.sparse.major": "1", "XNU.sparse.minor": "0", "XNU.sparse.name": "hole", "XNU.sparse.realsize": fmt.Sprint(size)}
	if err := tw.WriteHeader(&tar.Header{Name: "hole", Mode: 0o600, Uid: os.Getuid(), Gid: os.Getgid(), Size: 512, PAXRecords: records, Format: tar.FormatPAX}); err != nil {
		panic(err)
	}
	if _, err := tw.Write(data); err != nil {
		panic(err)
	}
	if err := tw.Close(); err != nil {
		panic(err)
	}
	return bytes.ReplaceAll(b.Bytes(), []byte("XNU.sparse"), []byte("GNU.sparse"))
}

// watchHeap returns a function that tells how large the heap has been since, in bytes.
func watchHeap(t *testing.T) func() uint64 {
	t.Helper()
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	done, most := make(chan struct{}), make(chan uint64)
	go func() {
		var peak uint64
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
			select {
			case <-done:
				most <- peak - min(peak, before.HeapAlloc)
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() uint64 { close(done); return <-most }
}

// Many files: the memory is bounded by their names. BERTH_TEST_FILES=1000000 takes some minutes.
func TestManyFiles(t *testing.T) {
	files := 10_000
	if s := os.Getenv("BERTH_TEST_FILES"); s != "" {
		if _, err := fmt.Sscan(s, &files); err != nil {
			t.Fatal(err)
		}
	}
	write := func(w io.Writer) error {
		tw := tar.NewWriter(w)
		for i := range files {
			h := &tar.Header{Name: fmt.Sprintf("usr/share/some/folder-%d/with-a-file-%d", i/1000, i), Mode: 0o644, Size: 1, Uid: os.Getuid(), Gid: os.Getgid()}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			if _, err := tw.Write([]byte{'x'}); err != nil {
				return err
			}
		}
		return tw.Close()
	}
	sum := digest.Canonical.Digester()
	if err := write(sum.Hash()); err != nil {
		t.Fatal(err)
	}
	c := newCanary(t)
	peak := watchHeap(t)
	id := sum.Digest()
	info, err := c.store.Unpack(t.Context(), UnpackRequest{ChainID: id, DiffID: id, Open: func(context.Context) (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(write(w)) }()
		return r, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if info.Inodes < uint64(files) {
		t.Errorf("%d inodes", info.Inodes)
	}
	if most, allowed := peak(), uint64(64<<20+1000*files); most > allowed {
		t.Errorf("%d MiB of memory, want less than %d", most>>20, allowed>>20)
	}
	c.check(t)
}

// A full disk is left with room for those who live on it.
func TestReserve(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=200m,nr_inodes=20000"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	fill := func(size int64, files int) error {
		id := digest.FromString("never")
		_, err := s.Unpack(t.Context(), UnpackRequest{ChainID: id, DiffID: id, Open: func(context.Context) (io.ReadCloser, error) {
			r, w := io.Pipe()
			go func() {
				tw := tar.NewWriter(w)
				for i := range files {
					if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Mode: 0o600, Size: size}); err != nil {
						break
					}
					if _, err := io.CopyN(tw, zeros{}, size); err != nil {
						break
					}
				}
				w.CloseWithError(tw.Close())
			}()
			return r, nil
		}})
		return err
	}
	for name, err := range map[string]error{"bytes": fill(1<<20, 300), "one file": fill(196<<20, 1), "inodes": fill(0, 30_000)} {
		if !errors.Is(err, errdefs.ErrResourceExhausted) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "left") {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantEmptyIngest(t, s)
}
