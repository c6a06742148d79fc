package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// file is an entry of a tar that was read back.
type file struct {
	header *tar.Header
	data   string
}

func readTar(t *testing.T, r io.Reader) (files map[string]file, order []string) {
	t.Helper()
	files = map[string]file{}
	for reader := tar.NewReader(r); ; {
		header, err := reader.Next()
		if err == io.EOF {
			return files, order
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = file{header, string(data)}
		order = append(order, header.Name)
	}
}

// write makes files below dir; a name that ends in / is a folder.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func sample(t *testing.T) Input {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"images/inventory.img": "inventory", "images/pages-1.img": "pages", "images/descriptors.json": "[]",
		"work/dump.log": "log of criu", "work/stats-dump": "numbers",
		"container.log": "2026 stdout F hello\n",
		"upper/etc/new": "content", "lower/etc/old": "old",
	})
	return Input{
		ContainerID: "0123", Name: "web_0", ImageRef: "docker.io/library/web:1", ImageID: "sha256:1f", Runtime: "runc",
		Spec: []byte(`{"ociVersion":"1.3.0"}`), Status: json.RawMessage(`{"id":"0123"}`),
		LogPath: filepath.Join(dir, "container.log"), ImagesDir: filepath.Join(dir, "images"), WorkDir: filepath.Join(dir, "work"),
		RootfsDiffDir: filepath.Join(dir, "upper"), LowerDirs: []string{filepath.Join(dir, "lower")},
		Pid: 77, CreatedAt: time.Unix(100, 0).UTC(), StartedAt: time.Unix(101, 0).UTC(), CheckpointedAt: time.Unix(200, 0).UTC(),
	}
}

func TestArchiveLayout(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.tar")
	if err := Archive(t.Context(), path, sample(t)); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", st.Mode(), err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files, _ := readTar(t, f)
	for name, want := range map[string]string{
		"config.dump": `{"id":"0123","name":"web_0","rootfsImage":"docker.io/library/web:1","rootfsImageRef":"sha256:1f",` +
			`"rootfsImageName":"docker.io/library/web:1","runtime":"runc","createdTime":"1970-01-01T00:01:40Z",` +
			`"checkpointedTime":"1970-01-01T00:03:20Z","restoredTime":"0001-01-01T00:00:00Z","restored":false}`,
		"spec.dump": `{"ociVersion":"1.3.0"}`,
		"status": `{"CreatedAt":100000000000,"StartedAt":101000000000,"FinishedAt":0,"ExitCode":0,"Pid":77,` +
			`"Reason":"","Message":""}`,
		"status.dump":                 `{"id":"0123"}`,
		"dump.log":                    "log of criu",
		"stats-dump":                  "numbers",
		"container.log":               "2026 stdout F hello\n",
		"checkpoint/":                 "",
		"checkpoint/inventory.img":    "inventory",
		"checkpoint/pages-1.img":      "pages",
		"checkpoint/descriptors.json": "[]",
		"deleted.files":               "[]",
	} {
		got, ok := files[name]
		if !ok || got.data != want {
			t.Errorf("%s (there: %v) is\n%s\nwant\n%s", name, ok, got.data, want)
		}
	}
	diff, _ := readTar(t, strings.NewReader(files["rootfs-diff.tar"].data))
	if diff["etc/new"].data != "content" {
		t.Errorf("rootfs-diff.tar holds %v", diff)
	}
	if len(files) != 13 {
		t.Errorf("the archive has %d entries, want 13: network.status was not given", len(files))
	}
}

func TestArchiveFailureLeavesNothing(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx    context.Context
		adjust func(*Input)
		want   error
	}{
		"no images": {t.Context(), func(in *Input) { in.ImagesDir += "-none" }, fs.ErrNotExist},
		"no upper":  {t.Context(), func(in *Input) { in.RootfsDiffDir += "-none" }, fs.ErrNotExist},
		"cancelled": {cancelled, func(*Input) {}, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			in, dir := sample(t), t.TempDir()
			test.adjust(&in)
			write(t, dir, map[string]string{"web.tar": "an older one"})
			if err := Archive(test.ctx, filepath.Join(dir, "web.tar"), in); !errors.Is(err, test.want) {
				t.Errorf("Archive: %v, want %v", err, test.want)
			}
			entries, _ := os.ReadDir(dir)
			data, _ := os.ReadFile(filepath.Join(dir, "web.tar"))
			if len(entries) != 1 || string(data) != "an older one" {
				t.Errorf("the folder holds %v, web.tar %q", entries, data)
			}
		})
	}
}

func TestLogIsOptional(t *testing.T) {
	in := sample(t)
	in.LogPath, in.WorkDir = "", ""
	if err := Archive(t.Context(), filepath.Join(t.TempDir(), "a.tar"), in); err != nil {
		t.Error(err)
	}
}

func diffOf(t *testing.T, upper string, lowers ...string) (map[string]file, []string) {
	t.Helper()
	var out bytes.Buffer
	deleted, err := writeDiff(t.Context(), &out, upper, lowers)
	if err != nil {
		t.Fatal(err)
	}
	files, _ := readTar(t, &out)
	return files, deleted
}

func TestDiffKeepsWhatFilesAre(t *testing.T) {
	upper := t.TempDir()
	write(t, upper, map[string]string{"bin/tool": "program", "empty/": ""})
	path := filepath.Join(upper, "bin/tool")
	if err := errors.Join(
		os.Chmod(path, 0o755|os.ModeSetuid),
		os.Chtimes(path, time.Time{}, time.Unix(1234, 0)),
		os.Link(path, filepath.Join(upper, "bin/zlink")),
		os.Symlink("../bin/tool", filepath.Join(upper, "bin/sym")),
		unix.Mkfifo(filepath.Join(upper, "fifo"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	hasXattr := unix.Lsetxattr(path, "user.note", []byte("kept"), 0) == nil

	files, deleted := diffOf(t, upper)
	tool := files["bin/tool"]
	if tool.data != "program" || tool.header.Mode != 0o4755 || tool.header.ModTime.Unix() != 1234 {
		t.Errorf("bin/tool: %q, mode %o, time %v", tool.data, tool.header.Mode, tool.header.ModTime)
	}
	if got := tool.header.PAXRecords["SCHILY.xattr.user.note"]; hasXattr && got != "kept" {
		t.Errorf("extended attribute %q", got)
	}
	if h := files["bin/zlink"].header; h.Typeflag != tar.TypeLink || h.Linkname != "bin/tool" {
		t.Errorf("hard link: %+v", h)
	}
	if h := files["bin/sym"].header; h.Typeflag != tar.TypeSymlink || h.Linkname != "../bin/tool" {
		t.Errorf("symlink: %+v", h)
	}
	if h := files["fifo"].header; h.Typeflag != tar.TypeFifo {
		t.Errorf("fifo: %+v", h)
	}
	if h := files["empty/"].header; h == nil || h.Typeflag != tar.TypeDir {
		t.Errorf("folder: %+v", h)
	}
	if len(deleted) != 0 {
		t.Errorf("deleted: %v", deleted)
	}
}

// overlay makes what overlayfs leaves in its upper folder, by overlayfs itself.
func TestDiffOfARealOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting overlayfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil { // the disk may be an overlay itself
		t.Skipf("mount tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	write(t, dir, map[string]string{
		"top/both/a": "", "top/gone": "", "base/both/b": "", "base/both/deep/c": "", "base/kept/x": "", "base/file": "1",
		"upper/": "", "work/": "", "merged/": "",
	})
	merged := filepath.Join(dir, "merged")
	options := "lowerdir=" + dir + "/top:" + dir + "/base,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Skipf("mount overlay: %v", err)
	}
	defer unix.Unmount(merged, unix.MNT_DETACH)
	if err := errors.Join(
		os.Remove(filepath.Join(merged, "gone")),
		os.RemoveAll(filepath.Join(merged, "both")),
		os.MkdirAll(filepath.Join(merged, "both/deep"), 0o755), // opaque: both and what is in it are hidden
		os.WriteFile(filepath.Join(merged, "file"), []byte("22"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	files, deleted := diffOf(t, filepath.Join(dir, "upper"), filepath.Join(dir, "top"), filepath.Join(dir, "base"))
	if want := []string{"/both/a", "/both/b", "/both/deep/c", "/gone"}; !slices.Equal(deleted, want) {
		t.Errorf("deleted %v, want %v", deleted, want)
	}
	var names []string
	for name, f := range files {
		names = append(names, name)
		for record := range f.header.PAXRecords {
			if strings.Contains(record, "overlay") {
				t.Errorf("%s carries %s", name, record)
			}
		}
	}
	slices.Sort(names)
	if want := []string{"both/", "both/deep/", "file"}; !slices.Equal(names, want) {
		t.Errorf("entries %v, want %v", names, want)
	}
}

func TestDiffRefusesWhatItCannotRead(t *testing.T) {
	upper := t.TempDir()
	write(t, upper, map[string]string{"moved/": ""})
	if err := unix.Lsetxattr(filepath.Join(upper, "moved"), "trusted.overlay.redirect", []byte("/was"), 0); err != nil {
		t.Skipf("trusted attributes: %v", err)
	}
	if _, err := writeDiff(t.Context(), io.Discard, upper, nil); !errors.Is(err, errdefs.ErrUnimplemented) {
		t.Errorf("writeDiff: %v, want class %v", err, errdefs.ErrUnimplemented)
	}
}

func TestCopyExactly(t *testing.T) {
	for in, want := range map[string]string{"abcdef": "abcd", "abcd": "abcd", "ab": "ab\x00\x00"} {
		var out strings.Builder
		if err := copyExactly(t.Context(), &out, strings.NewReader(in), 4); err != nil || out.String() != want {
			t.Errorf("copyExactly of %q: %q, %v; want %q", in, out.String(), err, want)
		}
	}
}
