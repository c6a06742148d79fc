package source

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/hostpath"
)

func TestMain(m *testing.M) {
	hostpath.Main() // the helper of these tests is the test itself
	os.Exit(m.Run())
}

// hang has a folder not answer any more, until the function that it returns is called.
func hang(t *testing.T, dir string) (end func()) {
	t.Helper()
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0) // nobody reads requests from it
	if err != nil {
		t.Skip(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server.Fd())
	if err := unix.Mount("hung", dir, "fuse", 0, options); err != nil {
		server.Close()
		t.Skip(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
			server.Close() // which ends all that wait
		}
	}
	t.Cleanup(end)
	return end
}

// A folder that does not answer holds up nobody, and counts again when it does.
func TestAFolderThatDoesNotAnswer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	n := newNode(t)
	n.paths = &hostpath.Resolver{Program: "/proc/self/exe", Limit: 300 * time.Millisecond}
	n.write("a.yaml", text("a", "1"))
	n.open().run()
	n.shows("a=1@a.yaml")
	n.stop()
	end := hang(t, n.dir)
	n.open().run()
	n.until(func() string {
		if all := n.store.Faults(); len(all) != 1 || !strings.Contains(all[0].Error(), n.dir+": the folder cannot be read: ") {
			return fmt.Sprint("the faults are ", all)
		}
		return ""
	})
	select {
	case <-n.store.Ready():
		t.Error("the folder is said to have been read")
	default:
	}
	if _, err := n.store.Apply(objects(t, text("b", "1"))); err != nil {
		t.Error(err)
	}
	n.shows("a=1@a.yaml", "b=1@applied")
	n.restart() // it ends, too
	end()
	n.write("c.yaml", text("c", "1"))
	n.ready()
	n.shows("a=1@a.yaml", "b=1@applied", "c=1@c.yaml")
	n.faulty()
}

// A file that does not answer is broken, for now; those beside it are not.
func TestALinkThatDoesNotAnswer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	n := newNode(t)
	n.paths = &hostpath.Resolver{Program: "/proc/self/exe", Limit: 300 * time.Millisecond}
	elsewhere := t.TempDir()
	n.must(os.WriteFile(filepath.Join(elsewhere, "far.yaml"), []byte(text("far", "1")), 0o644))
	n.must(os.Symlink(filepath.Join(elsewhere, "far.yaml"), n.path("far.yaml")))
	n.open().run()
	n.shows("far=1@far.yaml")
	n.stop()
	end := hang(t, elsewhere)
	n.write("near.yaml", text("near", "1"))
	n.open().run()
	n.ready()
	n.shows("far=1@far.yaml", "near=1@near.yaml")
	n.until(func() string {
		if all := n.store.Faults(); len(all) != 1 || !strings.HasPrefix(all[0].Error(), n.path("far.yaml")+": ") {
			return fmt.Sprint("the faults are ", all)
		}
		return ""
	})
	end()
	n.must(os.Remove(n.path("far.yaml"))) // somebody sees to it; else it would be looked at in a minute
	n.must(os.Symlink(filepath.Join(elsewhere, "far.yaml"), n.path("far.yaml")))
	n.faulty()
	n.shows("far=1@far.yaml", "near=1@near.yaml")
}
