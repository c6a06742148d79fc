package layer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/containerd/continuity/fs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/berth-node/berth/internal/errdefs"
)

// writeRecipe hands the archive r to apply and writes to file what is needed to make it again: all of it but the
// content of its files. It returns when r was read to its end, or something failed. max bounds the content of all files;
// 0 is no bound.
func writeRecipe(file string, r io.Reader, max int64, apply func(io.Reader) error) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	zw, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	sums := &checksums{left: max, bounded: max > 0, stop: make(chan struct{})}
	split, done, err := asm.NewInputTarStreamWithDone(r, packer{json.NewEncoder(zw)}, sums)
	if err != nil {
		return err
	}
	applyErr := apply(split)
	if applyErr == nil {
		// The end of an archive is followed by padding, which belongs to it.
		_, applyErr = io.Copy(io.Discard, split)
	}
	// Without these the splitter would wait for a reader, or read a hole, and go on to use r after our return.
	close(sums.stop)
	_ = split.Close()
	splitErr := <-done
	if applyErr != nil {
		return applyErr // the splitter only says that nobody reads
	}
	if splitErr != nil {
		return splitErr
	}
	return zw.Close()
}

// checksums computes those of the files, by which the recipe knows them again.
//
// It is the one place where a sparse file is read as long as it says it is: some bytes of archive can stand for years of
// zeros, in which the splitter sees nothing of what became of the archive elsewhere.
type checksums struct {
	left    int64 // of the bound
	bounded bool
	stop    chan struct{} // closed when nobody wants the recipe any more
	buf     [32 << 10]byte
}

func (c *checksums) Put(_ string, content io.Reader) (size int64, sum []byte, err error) {
	crc := crc64.New(storage.CRCTable)
	for {
		n, err := content.Read(c.buf[:])
		crc.Write(c.buf[:n])
		size += int64(n)
		if errors.Is(err, io.EOF) {
			return size, crc.Sum(nil), nil
		}
		if err != nil {
			return size, nil, err
		}
		if c.left -= int64(n); c.bounded && c.left < 0 {
			return size, nil, fmt.Errorf("the files of the archive are too large: %w", errdefs.ErrResourceExhausted)
		}
		select {
		case <-c.stop:
			return size, nil, io.ErrClosedPipe
		default:
		}
	}
}

// packer writes the entries of a recipe as JSON lines. Unlike the one of tar-split it does not refuse an archive that
// names a path twice: some tools write directories so. If it is a file, the recipe fails when it is used.
type packer struct{ enc *json.Encoder }

func (p packer) AddEntry(e storage.Entry) (int, error) { return 0, p.enc.Encode(e) }

type unpacker struct{ dec *json.Decoder }

func (u unpacker) Next() (*storage.Entry, error) {
	var e storage.Entry
	if err := u.dec.Decode(&e); err != nil {
		return nil, err
	}
	return &e, nil
}

// files opens the files of a tree by the names they have in the archive.
type files string

func (tree files) Get(name string) (io.ReadCloser, error) {
	// As the archive was applied: symbolic links count in the directory, not in the file.
	dir, base := path.Split(path.Clean("/" + name))
	p, err := fs.RootPath(string(tree), dir)
	if err != nil {
		return nil, err
	}
	p = filepath.Join(p, base)
	fi, err := os.Lstat(p)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file any more", name)
	}
	return os.Open(p)
}

// WriteTar writes the uncompressed archive that a layer was unpacked from, byte for byte. If it comes out different
// (the archive had a file twice, or the layer was changed on disk), it returns ErrFailedPrecondition.
func (s *Store) WriteTar(ctx context.Context, chain digest.Digest, w io.Writer) error {
	info, err := s.Get(chain)
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(s.layerDir(chain), recipeName))
	if err != nil {
		return err
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("recipe of layer %s: %w", chain, err)
	}
	tree, done, err := s.readable(info)
	if err != nil {
		return err
	}
	out := &checkedWriter{ctx: ctx, w: w, digester: info.DiffID.Algorithm().Digester()}
	err = asm.WriteOutputTarStream(files(tree), unpacker{json.NewDecoder(zr)}, out)
	if derr := done(); derr != nil {
		return derr
	}
	switch {
	case out.err != nil:
		return out.err
	case err != nil:
		return fmt.Errorf("layer %s cannot be made an archive again: %w: %w", chain, err, errdefs.ErrFailedPrecondition)
	case out.digester.Digest() != info.DiffID:
		return fmt.Errorf("layer %s cannot be made the same archive again: %w", chain, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// readable returns a directory in which the names of a layer's archive lead to its files: the layer itself, or a mount
// of it and those below, if its names lead through their symbolic links. The caller calls done in the end.
func (s *Store) readable(info Info) (dir string, done func() error, err error) {
	if len(info.Below) == 0 {
		return s.treeDir(info.ChainID), func() error { return nil }, nil
	}
	at, err := os.MkdirTemp(s.path("ingest"), "merged-")
	if err != nil {
		return "", nil, err
	}
	chain := append(slices.Clone(info.Below), info.ChainID)
	if err := s.mountOverlay(overlay{lower: s.lower(chain, ""), target: at}); err != nil {
		return "", nil, errors.Join(err, os.Remove(at))
	}
	return at, func() error { return errors.Join(Unmount(at), os.Remove(at)) }, nil
}

// checkedWriter computes the digest of what it writes, and tells its own errors from those of the reader.
type checkedWriter struct {
	ctx      context.Context
	w        io.Writer
	digester digest.Digester
	err      error
}

func (c *checkedWriter) Write(p []byte) (int, error) {
	if c.err = c.ctx.Err(); c.err != nil {
		return 0, c.err
	}
	c.digester.Hash().Write(p)
	n, err := c.w.Write(p)
	c.err = err
	return n, err
}
