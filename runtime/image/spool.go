package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/image/layer"
)

// maxSpoolFiles bounds how many files an archive of images may have.
const maxSpoolFiles = 100_000

// A spool is an archive that was written to disk, because what says which of its files are layers may come last.
type spool struct {
	store    *Store
	dir      string
	size     int64
	files    map[string]spoolFile // by name in the archive
	byDigest map[digest.Digest]spoolFile
	links    map[string]string
}

type spoolFile struct {
	path   string // no part of it comes from the archive
	size   int64
	digest digest.Digest // sha256
}

// spool reads an archive. The caller closes what it returns.
func (s *Store) spool(ctx context.Context, r io.Reader) (*spool, error) {
	dir, err := os.MkdirTemp(filepath.Join(s.cfg.Dir, "spool"), "load-")
	if err != nil {
		return nil, err
	}
	sp := &spool{store: s, dir: dir, files: map[string]spoolFile{}, byDigest: map[digest.Digest]spoolFile{}, links: map[string]string{}}
	if err := sp.fill(ctx, r); err != nil {
		sp.close()
		return nil, err
	}
	return sp, nil
}

func (sp *spool) close() {
	sp.store.spooled.Add(-sp.size)
	if err := os.RemoveAll(sp.dir); err != nil {
		sp.store.log.Warn("cannot delete a spooled archive, ignoring", "path", sp.dir, "error", err)
	}
}

func (sp *spool) fill(ctx context.Context, r io.Reader) error {
	plain, err := layer.Decompress(contextReader{ctx, r})
	if err != nil {
		return err
	}
	defer plain.Close()
	archive := tar.NewReader(plain)
	for {
		hdr, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, tar.ErrHeader) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return err
		}
		if len(sp.files)+len(sp.links) >= maxSpoolFiles {
			return fmt.Errorf("more than %d files: %w", maxSpoolFiles, errdefs.ErrInvalidArgument)
		}
		name := inArchive(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			if err := sp.add(name, archive); err != nil {
				return err
			}
		case tar.TypeSymlink: // docker save once wrote a layer that two images have so
			sp.links[name] = inArchive(path.Join(path.Dir(name), hdr.Linkname))
		case tar.TypeLink:
			sp.links[name] = inArchive(hdr.Linkname)
		}
	}
}

// inArchive returns a name as it is looked up.
func inArchive(name string) string { return path.Clean("/" + name)[1:] }

func (sp *spool) add(name string, r io.Reader) error {
	p := filepath.Join(sp.dir, strconv.Itoa(len(sp.files)))
	f, err := os.Create(p)
	if err != nil {
		return err
	}
	d := digest.SHA256.Digester()
	n, err := io.Copy(io.MultiWriter(f, d.Hash()), r)
	sp.size += n
	sp.store.spooled.Add(n)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	file := spoolFile{path: p, size: n, digest: d.Digest()}
	sp.files[name] = file
	sp.byDigest[file.digest] = file
	return nil
}

// find returns the file with a name.
func (sp *spool) find(name string) (spoolFile, error) {
	n := inArchive(name)
	for range 8 {
		to, ok := sp.links[n]
		if !ok {
			break
		}
		n = to
	}
	f, ok := sp.files[n]
	if !ok {
		return f, fmt.Errorf("%s is not in the archive: %w", name, errdefs.ErrNotFound)
	}
	return f, nil
}

// read returns the content of a small file.
func (sp *spool) read(name string, limit int64) ([]byte, error) {
	f, err := sp.find(name)
	if err != nil {
		return nil, err
	}
	if f.size > limit {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are accepted: %w", name, f.size, limit, errdefs.ErrInvalidArgument)
	}
	return os.ReadFile(f.path)
}

// open is the blobs of the archive.
func (sp *spool) open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, ok := sp.byDigest[desc.Digest]
	if !ok {
		var err error
		f, err = sp.find(path.Join(ocispec.ImageBlobsDir, desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
		if err != nil {
			return nil, err
		}
	}
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{contextReader{ctx, file}, file}, nil
}

// contextReader stops to read when its context has ended.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
