package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

// fuzzStore is a store with a file beside it that nothing may touch.
func fuzzStore(f *testing.F) (s *Store, beside string) {
	f.Helper()
	if os.Geteuid() != 0 {
		f.Skip("layers need root")
	}
	dir := f.TempDir()
	s, err := Open(filepath.Join(dir, "a", "b", "store"), slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range []string{filepath.Join(dir, "x"), filepath.Join(dir, "a", "x"), filepath.Join(dir, "a", "b", "x")} {
		if err := os.WriteFile(p, []byte("secret"), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	return s, dir
}

// checkBeside fails the test if anything changed outside of the store, or something half made is left in it.
func checkBeside(t *testing.T, s *Store, dir string) {
	t.Helper()
	for _, d := range []string{"", "a", "a/b"} {
		entries, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil || len(entries) != 2 {
			t.Errorf("in %q: %v, %v", d, entries, err)
		}
		x, err := os.Lstat(filepath.Join(dir, d, "x"))
		if err != nil || x.Mode() != 0o600 || x.Size() != 6 {
			t.Errorf("the file in %q: %v, %v", d, x, err)
		}
	}
	wantEmptyIngest(t, s)
}

func unpackFuzzed(t *testing.T, s *Store, dir string, archive []byte) {
	id := digest.FromBytes(archive)
	base := digest.FromString("base")
	for _, below := range [][]digest.Digest{nil, {base}} {
		req := UnpackRequest{ChainID: digest.FromString("fuzzed"), DiffID: id, Open: opener(archive), MaxBytes: 8 << 20}
		if below != nil {
			req.Below = func(context.Context) ([]digest.Digest, error) { return below, nil }
		}
		_, err := s.Unpack(t.Context(), req)
		if err == nil {
			err = s.Remove(req.ChainID)
			if err != nil {
				t.Error(err)
			}
		}
		checkBeside(t, s, dir)
	}
}

// addBase makes the layer that lies below.
func addBase(f *testing.F, s *Store) {
	f.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/x", Mode: 0o644}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../../../../a"}} {
		if err := w.WriteHeader(h); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	id := digest.FromBytes(buf.Bytes())
	if _, err := s.Unpack(f.Context(), UnpackRequest{ChainID: digest.FromString("base"), DiffID: id, Open: opener(buf.Bytes())}); err != nil {
		f.Fatal(err)
	}
}

// FuzzArchive unpacks any bytes.
func FuzzArchive(f *testing.F) {
	s, dir := fuzzStore(f)
	addBase(f, s)
	f.Add(sparse(1 << 40))
	f.Add([]byte("\x1f\x8b"))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, archive []byte) { unpackFuzzed(t, s, dir, archive) })
}

// fuzzNames and fuzzKinds are what FuzzEntries makes archives of.
var (
	fuzzNames = []string{
		"d", "d/", "d/x", "l", "l/x", "l/d", "x", "/x", "../x", "d/../../x", ".wh.x", ".wh.d", "d/.wh.x", "l/.wh.x", ".wh..wh..opq", "d/.wh..wh..opq",
		"l/.wh..wh..opq", ".wh...", ".wh..", ".wh.", "../../../../../../a/x", ".", "..", "",
	}
	fuzzKinds = []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo, tar.TypeXGlobalHeader}
)

// FuzzEntries unpacks archives of entries that have to do with each other: each three bytes are a kind, a name and a target.
func FuzzEntries(f *testing.F) {
	s, dir := fuzzStore(f)
	addBase(f, s)
	f.Add([]byte{2, 3, 20, 0, 4, 0})
	f.Add([]byte{3, 6, 20, 0, 6, 0, 1, 1, 0, 0, 13, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for ; len(program) >= 3; program = program[3:] {
			h := &tar.Header{Typeflag: fuzzKinds[int(program[0])%len(fuzzKinds)], Name: fuzzNames[int(program[1])%len(fuzzNames)], Mode: 0o755}
			if h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink {
				h.Linkname = fuzzNames[int(program[2])%len(fuzzNames)]
			}
			if h.Typeflag == tar.TypeReg {
				h.Size = 1
			}
			if w.WriteHeader(h) != nil {
				return
			}
			if h.Typeflag == tar.TypeReg {
				if _, err := w.Write([]byte{'f'}); err != nil {
					return
				}
			}
		}
		if w.Close() == nil {
			unpackFuzzed(t, s, dir, buf.Bytes())
		}
	})
}

// FuzzDecompress reads the beginning of any stream.
func FuzzDecompress(f *testing.F) {
	f.Add([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 0, 0, 0})
	f.Add([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer r.Close()
		if n, _ := io.Copy(io.Discard, io.LimitReader(r, 1<<20)); n < 0 {
			t.Error(n)
		}
	})
}

// FuzzLayerInfo opens a store with any layer.json in it.
func FuzzLayerInfo(f *testing.F) {
	id := digest.FromString("x")
	f.Add([]byte(`{"chainID":"` + id.String() + `","bytes":5}`))
	f.Add([]byte(`{"chainID":"sha256:../..","below":["x"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		layer := filepath.Join(dir, "layers", id.Encoded())
		if err := os.MkdirAll(filepath.Join(layer, treeName), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(layer, infoName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(layer + damagedSuffix); s.Has(id) == (err == nil) {
			t.Errorf("there: %v, set aside: %v", s.Has(id), err == nil)
		}
		if len(s.List()) > 1 {
			t.Errorf("layers %v", s.List())
		}
	})
}
