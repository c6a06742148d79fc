// Package checkpoint packs the archive of a container's checkpoint and tells whether the node's criu can make one.
//
// The archive is an uncompressed tar in the layout that Podman began and CRI-O, containerd and checkpointctl read:
//
//	config.dump       what the container is: ID, name, image, times (JSON)
//	spec.dump         its OCI runtime spec
//	status            its times and pid, for checkpointctl (JSON)
//	status.dump       its CRI status, for containerd (JSON; if given)
//	network.status    its addresses (JSON; if given)
//	checkpoint/       criu's images
//	dump.log          criu's log, and stats-dump its statistics
//	container.log     what the container wrote until now
//	rootfs-diff.tar   files that it added or changed in its root filesystem
//	deleted.files     paths of those that it deleted there (JSON)
//
// All entries are regular files or folders; device nodes, links and the like of the container are inside rootfs-diff.tar
// only. Deleted files are no whiteouts in there, but listed, as Podman and CRI-O expect.
package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Input is what an archive is made of. Folders and files are read while the container may be running on.
type Input struct {
	ContainerID string
	// Name of the container, as Podman has it: unique on the node.
	Name string
	// ImageRef is the image as the user named it, ImageID the one that the reference meant.
	ImageRef, ImageID string
	// Runtime is the name of the runtime handler.
	Runtime string
	// Spec is the OCI runtime spec as it was handed to the runtime.
	Spec []byte
	// Status is the JSON of the container's CRI status, Network that of its CNI result. Nil leaves the file out.
	Status, Network json.RawMessage
	// LogPath is the container's log file. Empty, or the name of no file, leaves the log out.
	LogPath string
	// ImagesDir holds criu's images, WorkDir its log and statistics (dump.log, stats-dump).
	ImagesDir, WorkDir string
	// RootfsDiffDir is the upper folder of the container's overlay, LowerDirs the ones below it, topmost first. Without
	// LowerDirs a folder that replaced one of the image cannot be told from one that was merged with it.
	RootfsDiffDir string
	LowerDirs     []string

	Pid                                  int
	CreatedAt, StartedAt, CheckpointedAt time.Time
}

// containerConfig is the content of config.dump.
type containerConfig struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`
	RootfsImageName string    `json:"rootfsImageName,omitempty"`
	OCIRuntime      string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
	RestoredAt      time.Time `json:"restoredTime"`
	Restored        bool      `json:"restored"`
}

// containerStatus is the content of status. Times are nanoseconds since 1970.
type containerStatus struct {
	CreatedAt  int64
	StartedAt  int64
	FinishedAt int64
	ExitCode   int32
	Pid        uint32
	Reason     string
	Message    string
}

// Archive writes the archive to path with mode 0600. It is at path whole, synced to disk, or not at all: a checkpoint is
// made to outlive the node. The root filesystem's changes are packed beside path first, so its folder needs room for
// them twice.
func Archive(ctx context.Context, path string, in Input) (err error) {
	out, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // with mode 0600
	if err != nil {
		return fmt.Errorf("checkpoint archive %s: %w", path, err)
	}
	a := &archive{ctx: ctx, tar: tar.NewWriter(out), at: in.CheckpointedAt, dir: filepath.Dir(path)}
	err = a.write(&in)
	err = errors.Join(err, a.tar.Close())
	if err == nil {
		err = out.Sync()
	}
	err = errors.Join(err, out.Close())
	if err == nil {
		err = os.Rename(out.Name(), path)
	}
	if err != nil {
		_ = os.Remove(out.Name())
		return fmt.Errorf("checkpoint archive %s: %w", path, err)
	}
	return nil
}

// An archive is one on the way.
type archive struct {
	ctx context.Context // of Archive, whose call all of this is
	tar *tar.Writer
	at  time.Time
	dir string // for temporary files
}

func (a *archive) write(in *Input) error {
	config := containerConfig{
		ID: in.ContainerID, Name: in.Name, OCIRuntime: in.Runtime,
		RootfsImage: in.ImageRef, RootfsImageName: in.ImageRef, RootfsImageRef: in.ImageID,
		CreatedTime: in.CreatedAt, CheckpointedAt: in.CheckpointedAt,
	}
	status := containerStatus{CreatedAt: in.CreatedAt.UnixNano(), StartedAt: in.StartedAt.UnixNano(), Pid: uint32(in.Pid)}
	steps := []func() error{
		func() error { return a.json("config.dump", &config) },
		func() error { return a.bytes("spec.dump", in.Spec) },
		func() error { return a.json("status", &status) },
		func() error { return a.optional("status.dump", in.Status) },
		func() error { return a.optional("network.status", in.Network) },
		func() error { return a.file("dump.log", in.WorkDir, "dump.log") },
		func() error { return a.file("stats-dump", in.WorkDir, "stats-dump") },
		func() error { return a.file("container.log", filepath.Dir(in.LogPath), filepath.Base(in.LogPath)) },
		func() error { return a.images(in.ImagesDir) },
		func() error { return a.rootfs(in.RootfsDiffDir, in.LowerDirs) },
	}
	for _, step := range steps {
		if err := errors.Join(a.ctx.Err(), step()); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) json(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return a.bytes(name, data)
}

func (a *archive) optional(name string, data []byte) error {
	if data == nil {
		return nil
	}
	return a.bytes(name, data)
}

func (a *archive) bytes(name string, data []byte) error {
	return a.stream(name, int64(len(data)), bytes.NewReader(data))
}

// file adds dir/base under name. A file that is not there is left out: no part of a restore depends on these.
func (a *archive) file(name, dir, base string) error {
	f, err := os.Open(filepath.Join(dir, base))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !st.Mode().IsRegular() {
		return nil
	}
	return a.stream(name, st.Size(), f)
}

// images adds criu's images. A restore needs each of them.
func (a *archive) images(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("criu's images: %w", err)
	}
	err = a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "checkpoint/", Mode: 0o700, ModTime: a.at})
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		if err := a.file("checkpoint/"+entry.Name(), dir, entry.Name()); err != nil {
			return err
		}
	}
	return nil
}

// rootfs adds what the container changed in its root filesystem.
func (a *archive) rootfs(upper string, lowers []string) error {
	diff, err := os.CreateTemp(a.dir, ".rootfs-diff.*")
	if err != nil {
		return err
	}
	defer diff.Close()
	if err := os.Remove(diff.Name()); err != nil { // nothing to clean up, however this ends
		return err
	}
	deleted, err := writeDiff(a.ctx, diff, upper, lowers)
	if err != nil {
		return fmt.Errorf("rootfs-diff.tar: %w", err)
	}
	size, err := diff.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := diff.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return errors.Join(a.stream("rootfs-diff.tar", size, diff), a.json("deleted.files", deleted))
}

// stream adds a file of this size.
func (a *archive) stream(name string, size int64, r io.Reader) error {
	err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: size, ModTime: a.at})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := copyExactly(a.ctx, a.tar, r, size); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// copyExactly copies size bytes. The file behind r may be written to meanwhile: what it has more than that is left out,
// and what it lacks becomes zeros, for the size is already in the archive.
func copyExactly(ctx context.Context, w io.Writer, r io.Reader, size int64) error {
	const piece = 4 << 20
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.CopyN(w, r, min(left, piece))
		left -= n
		if errors.Is(err, io.EOF) {
			_, err = io.CopyN(w, zeros{}, left)
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// zeros reads as zero bytes without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
