package layer

import (
	"archive/tar"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// What an archive says of itself takes memory while it is unpacked, and what it holds takes disk. Both are the choice of
// whoever made it, and compressed they are small: a few MiB on the wire can be a terabyte, or millions of long names.
const (
	// maxHeaders bounds the names, links and attributes of one layer's entries, in bytes as headerSize counts them. A million
	// files of a usual system have 200 MiB.
	maxHeaders = 256 << 20
	// maxReserve and reservePart are what unpacking leaves free on the disk, for the containers of the node: the smaller of
	// a fixed size, in bytes, and a part of the disk.
	maxReserve  = 1 << 30
	reservePart = 20
	// lookBytes and lookInodes are after how much is looked at the disk again.
	lookBytes  = 64 << 20
	lookInodes = 128
)

// A meter counts what a layer has taken since the disk was looked at.
type meter struct {
	headers       uint64
	bytes, inodes uint64
}

// admit says whether an entry may be unpacked: whether it means something that a layer can mean, and there is room for it.
func (in *ingest) admit(hdr *tar.Header) error {
	switch hidden, _ := strings.CutPrefix(path.Base(hdr.Name), whiteoutPrefix); {
	case hidden == path.Base(hdr.Name): // no whiteout
	case hidden == "", hidden == ".", hidden == "..":
		return fmt.Errorf("%q hides no file: %w", hdr.Name, errdefs.ErrInvalidArgument)
	}
	return in.afford(hdr)
}

// afford says whether there is room for an entry.
func (in *ingest) afford(hdr *tar.Header) error {
	m := &in.meter
	m.headers += headerSize(hdr)
	if m.headers > maxHeaders {
		return fmt.Errorf("the names and attributes of the layer's files take more than %d MiB: %w", maxHeaders>>20, errdefs.ErrResourceExhausted)
	}
	bytes, inodes := weight(hdr)
	// A sparse file is larger than the part of the archive that it comes from.
	if most := in.req.MaxBytes; most > 0 && in.info.Bytes+bytes > uint64(most)+blockSize*(in.info.Inodes+1) {
		return fmt.Errorf("the unpacked layer is larger than %d bytes: %w", most, errdefs.ErrResourceExhausted)
	}
	m.bytes += bytes
	m.inodes += inodes
	if m.bytes < lookBytes && m.inodes < lookInodes {
		return nil
	}
	m.bytes, m.inodes = 0, 0
	return in.store.room(bytes, inodes)
}

// weigh admits and counts all entries. It is a filter that lets them pass.
func (in *ingest) weigh(hdr *tar.Header) (bool, error) {
	if err := in.admit(hdr); err != nil {
		return false, err
	}
	in.count(weight(hdr))
	return true, nil
}

// headerSize is about what an entry takes in memory until the layer is unpacked.
func headerSize(hdr *tar.Header) uint64 {
	size := 100 + len(hdr.Name) + len(hdr.Linkname)
	for k, v := range hdr.PAXRecords {
		size += len(k) + len(v)
	}
	return uint64(size)
}

// room says whether the disk can take so much and still has its reserve.
func (s *Store) room(bytes, inodes uint64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: s.dir, Err: err}
	}
	free, size := fs.Bavail*uint64(fs.Bsize), fs.Blocks*uint64(fs.Bsize)
	if reserve := min(maxReserve, size/reservePart); free < bytes+reserve {
		return fmt.Errorf("the disk of %s has %d MiB left, of which %d are kept free: %w: %w",
			s.dir, free>>20, reserve>>20, unix.ENOSPC, errdefs.ErrResourceExhausted)
	}
	// Some file systems do not count inodes.
	if fs.Files > 0 && fs.Ffree < inodes+fs.Files/(5*reservePart) {
		return fmt.Errorf("the disk of %s has %d of its %d inodes left: %w: %w", s.dir, fs.Ffree, fs.Files, unix.ENOSPC, errdefs.ErrResourceExhausted)
	}
	return nil
}
