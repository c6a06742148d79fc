package enter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/startfifo"
)

// A box is what a container of these tests is made of: a root filesystem with the node's programs, and a /dev.
type box struct {
	*world
	root, dev string
	fifo      *os.File
	out       *os.File
	placed    []int
	made      func(int) error
}

func newBox(t *testing.T) *box {
	needRoot(t)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	b := &box{world: &world{program: programFile(t), proc: open(t, "/proc"), t: t}, root: t.TempDir(), dev: t.TempDir()}
	for _, dir := range []string{"usr", "etc"} {
		b.do(os.Mkdir(filepath.Join(b.root, dir), 0o755))
	}
	for _, link := range []string{"bin", "lib", "lib64"} {
		b.do(os.Symlink("usr/"+link, filepath.Join(b.root, link)))
	}
	b.do(unix.Mount("tmpfs", b.dev, "tmpfs", 0, "mode=755"))
	t.Cleanup(func() { b.do(unix.Unmount(b.dev, unix.MNT_DETACH)) })
	b.do(unix.Mknod(filepath.Join(b.dev, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))

	path := filepath.Join(t.TempDir(), "fifo")
	b.do(unix.Mkfifo(path, 0o622))
	b.do(startfifo.Block(path)) // for as long as this process lives
	fifo, err := os.OpenFile(path, os.O_RDWR, 0)
	b.do(err)
	t.Cleanup(func() { fifo.Close() })
	b.fifo = fifo
	return b
}

func (b *box) do(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) plan(args ...string) *Plan {
	p := base()
	p.Namespaces = 0
	p.Args = args
	p.Init = &Init{
		New: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Rootfs: b.root, Propagation: unix.MS_SLAVE | unix.MS_REC,
		Mounts: []Mount{
			{Target: "/proc", Type: "proc", Source: "proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
			{Target: "/dev", Tree: b.dev, Recursive: true},
			{Target: "/usr", Tree: "/usr", Recursive: true, Attributes: []Attributes{{Set: unix.MOUNT_ATTR_RDONLY}}},
		},
		MaskedPaths: []string{"/proc/version", "/proc/bus", "/proc/fs", "/proc/no-such"}, ReadonlyPaths: []string{"/proc/sys", "/proc/no-such"},
	}
	return p
}

// create makes the container, which waits for its start then.
func (b *box) create(p *Plan) (int, *os.File, error) {
	b.t.Helper()
	data, err := p.Encode()
	b.do(err)
	path := filepath.Join(b.t.TempDir(), "plan")
	b.do(os.WriteFile(path, data, 0o600))
	b.out, err = os.CreateTemp(b.t.TempDir(), "out")
	b.do(err)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	b.do(err)
	defer null.Close()
	made := b.made
	if made == nil {
		made = func(int) error { return nil }
	}
	return Create(context.Background(), InitFiles{
		Program: b.program, Plan: open(b.t, path), Fifo: b.fifo, Proc: b.proc, Stdio: [3]*os.File{null, b.out, b.out},
	}, Steps{Place: func(pid int) error { b.placed = append(b.placed, pid); return nil }, Made: made})
}

// run starts what was created and returns what it printed, and how it ended.
func (b *box) run(p *Plan) (string, syscall.WaitStatus) {
	b.t.Helper()
	pid, pidfd, err := b.create(p)
	b.do(err)
	defer pidfd.Close()
	if text, err := os.ReadFile(b.out.Name()); err != nil || len(text) > 0 {
		b.t.Errorf("it has not waited for its start: %q, %v", text, err)
	}
	starter, err := startfifo.Open(b.fifo.Name())
	b.do(err)
	defer starter.Close()
	startfifo.LetGo(starter.Fd())
	status := b.wait(pid)
	text, err := os.ReadFile(b.out.Name())
	b.do(err)
	return string(text), status
}

func (b *box) wait(pid int) (status syscall.WaitStatus) {
	b.t.Helper()
	_, err := syscall.Wait4(pid, &status, 0, nil)
	for err == syscall.EINTR {
		_, err = syscall.Wait4(pid, &status, 0, nil)
	}
	b.do(err)
	return status
}

func TestInit(t *testing.T) {
	b := newBox(t)
	p := b.plan("sh", "-c", `echo $$ $PPID; ls /; ls /proc/fs; wc -c </proc/version; touch /usr/x /proc/sys/kernel/hostname 2>&1
		readlink /dev/fd /dev/ptmx; pwd; ls /proc/self/fd; stat -Lc %t:%T /proc/self/fd/0; exit 7`)
	p.Cwd = "/a/b"
	out, status := b.run(p)
	want := `1 0
a
bin
dev
etc
lib
lib64
proc
usr
0
touch: cannot touch '/usr/x': Read-only file system
touch: cannot touch '/proc/sys/kernel/hostname': Read-only file system
/proc/self/fd
pts/ptmx
/a/b
0
1
2
3
1:3
`
	if out != want || status.ExitStatus() != 7 {
		t.Errorf("it ended with %v and printed\n%s\nwant\n%s", status, out, want)
	}
	if len(b.placed) != 1 {
		t.Errorf("placed: %v", b.placed)
	}
}

func TestInitRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*box, *Plan)
		step   string
		errno  syscall.Errno
	}{
		"the root":           {func(b *box, p *Plan) { b.link("/", "etc/x"); b.mount(p, "/etc/x") }, "the mount point is", unix.EXDEV},
		"below /proc":        {func(b *box, p *Plan) { b.link("/proc/sys", "etc/x"); b.mount(p, "/etc/x") }, "the mount point is", unix.EXDEV},
		"a link to nothing":  {func(b *box, p *Plan) { b.link("nothing", "etc/x"); b.mount(p, "/etc/x/y") }, "find the mount point", unix.ENOTDIR},
		"a loop":             {func(b *box, p *Plan) { b.link("x", "etc/x"); b.mount(p, "/etc/x") }, "find the mount point", unix.ELOOP},
		"/proc is a link":    {func(b *box, p *Plan) { b.link("etc", "proc") }, "find the mount point", unix.ELOOP},
		"no such source":     {func(b *box, p *Plan) { p.Init.Mounts[2].Tree = "/no/such" }, "take what", unix.ENOENT},
		"no such type":       {func(b *box, p *Plan) { p.Init.Mounts[0].Type = "nosuchfs" }, "mount", unix.ENODEV},
		"no such command":    {func(b *box, p *Plan) { p.Args = []string{"/no/such"} }, "find the command", unix.ENOENT},
		"a file for its cwd": {func(b *box, p *Plan) { p.Cwd = "/proc/version" }, "enter the working directory", unix.ENOTDIR},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			p := b.plan("true")
			c.change(b, p)
			_, _, err := b.create(p)
			var e *Error
			if !errors.As(err, &e) || !strings.HasPrefix(e.Report.Step.String(), c.step) || e.Report.Errno != c.errno {
				t.Errorf("the error is %v, want %s: %v", err, c.step, c.errno)
			}
			b.nobodyLeft()
		})
	}
}

func (b *box) link(target, name string) { b.do(os.Symlink(target, filepath.Join(b.root, name))) }

func (b *box) mount(p *Plan, target string) {
	p.Init.Mounts = append(p.Init.Mounts, Mount{Target: target, Tree: b.t.TempDir()})
}

// nobodyLeft reaps the init that has failed and wants no other process.
func (b *box) nobodyLeft() {
	b.t.Helper()
	for {
		if _, err := syscall.Wait4(-1, nil, syscall.WALL, nil); err == syscall.ECHILD {
			return
		} else if err != nil && err != syscall.EINTR {
			b.t.Fatal(err)
		}
	}
}

// Links of the image lead to what is in it, wherever they point.
func TestInitStaysInItsRoot(t *testing.T) {
	b := newBox(t)
	b.link("../../../../../etc", "up")
	b.link("/etc", "root")
	p := b.plan("sh", "-c", "ls -d /etc/one /etc/two/three")
	b.mount(p, "/up/one")
	b.mount(p, "/root/two/three")
	if out, _ := b.run(p); out != "/etc/one\n/etc/two/three\n" {
		t.Errorf("it printed %q", out)
	}
	for _, dir := range []string{"etc/one", "etc/two/three"} {
		if _, err := os.Stat(filepath.Join(b.root, dir)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat("/" + dir); err == nil {
			t.Errorf("/%s was made on the node", dir)
		}
	}
}

// An init that nobody has on record ends with who made it.
func TestInitWaitsUntilItIsKnown(t *testing.T) {
	b := newBox(t)
	b.made = func(pid int) error {
		time.Sleep(20 * time.Millisecond) // it is done by then, and waits
		if err := unix.Kill(pid, 0); err != nil {
			t.Errorf("init has not waited: %v", err)
		}
		return errors.New("not on record")
	}
	if _, _, err := b.create(b.plan("true")); err == nil || err.Error() != "not on record" {
		t.Errorf("the error is %v", err)
	}
	b.nobodyLeft()
}

// Why an init has failed is told whether it read that it may go on, was told so and did not read it, or had ended before.
func TestInitTellsWhyItFailed(t *testing.T) {
	for name, made := range map[string]func(pid int) error{
		"at once": func(int) error { return nil },
		"late":    func(int) error { time.Sleep(20 * time.Millisecond); return nil },
		"while it stands still": func(pid int) error {
			time.AfterFunc(20*time.Millisecond, func() { unix.Kill(pid, unix.SIGCONT) }) // it may have ended
			return unix.Kill(pid, unix.SIGSTOP)
		},
	} {
		b := newBox(t)
		p := b.plan("true")
		tmpfs := Mount{Target: "/tmp", Type: "tmpfs", Source: "tmpfs"}
		p.Init.Mounts = append(p.Init.Mounts, slices.Repeat([]Mount{tmpfs}, 20)...) // so that it is at work for a while
		p.Init.Mounts = append(p.Init.Mounts, Mount{Target: "/x", Tree: "/no/such"})
		b.made = made
		_, _, err := b.create(p)
		var e *Error
		if !errors.As(err, &e) || e.Report.Errno != unix.ENOENT {
			t.Errorf("told to go on %s: the error is %v, want %v", name, err, unix.ENOENT)
		}
		b.nobodyLeft()
	}
}
