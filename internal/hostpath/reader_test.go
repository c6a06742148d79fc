package hostpath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
)

// readers are one that looks at everything itself, and one that sends a helper, to what is on the disk of path too.
func readers(t *testing.T, path string, watches *os.File) map[string]*Reader {
	t.Helper()
	all := map[string]*Reader{}
	for name, r := range resolvers() {
		d := r.Reader(t.Context(), watches)
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, 0, 0, &st); err != nil {
			t.Fatal(err)
		}
		d.kinds[unix.Mkdev(st.Dev_major, st.Dev_minor)] = true
		r.Limit = 0
		t.Cleanup(d.Close)
		all[name] = d
	}
	return all
}

func TestReader(t *testing.T) {
	top := t.TempDir()
	in := func(name string) string { return filepath.Join(top, name) }
	for _, err := range []error{
		os.WriteFile(in("file"), []byte("some\x00text\xff"), 0o640), os.Mkdir(in("dir"), 0o755), os.Symlink("file", in("link")), unix.Mkfifo(in("pipe"), 0o600),
		os.Link(in("file"), in("second")), os.Truncate(in("file"), 9), os.WriteFile(in("large"), nil, 0o600), os.Truncate(in("large"), 5<<20),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var want unix.Stat_t
	if err := unix.Stat(in("file"), &want); err != nil {
		t.Fatal(err)
	}
	for name, d := range readers(t, top, nil) {
		t.Run(name, func(t *testing.T) {
			st, err := d.Stat(in("link"))
			if err != nil || st != (State{want.Dev, want.Ino, want.Size, true, 2, want.Mtim, want.Ctim}) {
				t.Errorf("stat: %+v, %v", st, err)
			}
			if st, err := d.Lstat(in("link")); err != nil || st.Regular || st.Inode == want.Ino {
				t.Errorf("lstat: %+v, %v", st, err)
			}
			entries, err := d.List(top)
			if got := fmt.Sprint(entries); err != nil || got != "[{dir true} {file false} {large false} {link false} {pipe false} {second false}]" {
				t.Errorf("list: %v, %v", got, err)
			}
			if text, err := d.Read(in("link")); err != nil || string(text) != "some\x00text"[:9] {
				t.Errorf("read: %q, %v", text, err)
			}
			for _, path := range []string{"none", "none/below"} {
				_, err1 := d.Stat(in(path))
				_, err2 := d.Lstat(in(path))
				_, err3 := d.List(in(path))
				_, err4 := d.Read(in(path))
				for _, err := range []error{err1, err2, err3, err4} {
					if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), in(path)) {
						t.Errorf("%s: %v", path, err)
					}
				}
			}
			for path, want := range map[string]string{"dir": "it is no regular file", "pipe": "it is no regular file", "large": "and may have"} {
				if _, err := d.Read(in(path)); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("read %s: %v", path, err)
				}
			}
			if helped := d.helper != nil; helped != (name == "with a helper") {
				t.Errorf("there is a helper: %v", helped)
			}
		})
	}
}

// What a helper watches, the kernel tells whoever has the descriptor.
func TestReaderWatches(t *testing.T) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	watches := os.NewFile(uintptr(fd), "inotify")
	defer watches.Close()
	top := t.TempDir()
	for name, d := range readers(t, top, watches) {
		dir := filepath.Join(top, name)
		if _, err := d.Watch(dir, unix.IN_CREATE); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		wd, err := d.Watch(dir, unix.IN_CREATE)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		d.Close()
		if err := os.Mkdir(filepath.Join(dir, "new"), 0o755); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		if err := watches.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := watches.Read(buf); err != nil || int(binary.NativeEndian.Uint32(buf)) != wd || !strings.Contains(string(buf[:n]), "new") {
			t.Errorf("%s: %q, %v", name, buf[:n], err)
		}
	}
}

// A mount that has nobody to answer it ends the look at what is like it, and at nothing else.
func TestReaderOnAMountThatHangs(t *testing.T) {
	hung := hungMount(t)
	r := resolvers()["with a helper"]
	d := r.Reader(t.Context(), nil)
	defer d.Close()
	for _, path := range []string{hung, filepath.Join(hung, "file")} {
		if _, err := d.Stat(path); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), hung) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if !d.Waited() {
		t.Error("it has not waited")
	}
	if _, err := d.List(filepath.Dir(hung)); err != nil {
		t.Errorf("the folder that it is in: %v", err)
	}
	// Who is called off does not wait.
	r.Limit = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	off := r.Reader(ctx, nil)
	defer off.Close()
	if _, err := off.Stat(hung); err == nil {
		t.Error("it answers")
	}
}
