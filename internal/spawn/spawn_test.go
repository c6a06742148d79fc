package spawn

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// output starts a shell and returns what it writes, and how it ends.
func output(t *testing.T, script string) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pid, pidfd, err := Start("/bin/sh", []string{"sh", "-c", script}, syscall.ProcAttr{Files: []uintptr{w.Fd(), w.Fd(), w.Fd()}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	text, err := io.ReadAll(r) // ends: nobody has kept the pipe
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Errorf("the pidfd: %v", err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text)), status.ExitStatus()
}

func TestStart(t *testing.T) {
	if text, code := output(t, "echo hello; exit 7"); text != "hello" || code != 7 {
		t.Errorf("%q, exit code %d", text, code)
	}
	_, pidfd, err := Start("/no/such/program", []string{"it"}, syscall.ProcAttr{})
	if !errors.Is(err, fs.ErrNotExist) || pidfd != -1 {
		t.Errorf("what is not there: %v, pidfd %d", err, pidfd)
	}
}

func TestWithheld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	low, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	f := Withhold(low)
	defer f.Close()
	if f == low {
		t.Fatal("it is not moved")
	}
	if int(f.Fd()) < withheld() {
		t.Errorf("descriptor %d", f.Fd())
	}
	if _, err := low.WriteString("x"); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("the descriptor before: %v", err)
	}
	if Withhold(f) != f {
		t.Error("it is moved again")
	}
	if _, err := f.WriteString("text"); err != nil {
		t.Error(err)
	}
	// Even if it were to be kept: the new process never has it.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	if text, _ := output(t, "ls -l /proc/$$/fd"); strings.Contains(text, path) || !strings.Contains(text, "pipe:") {
		t.Errorf("the process has\n%s", text)
	}
	if data, err := os.ReadFile(path); string(data) != "text" {
		t.Errorf("%q, %v", data, err)
	}
}

// Where few files may be open, half of the descriptors are for what is withheld. If more than the other half is needed, processes
// get theirs all the same.
func TestFewFiles(t *testing.T) {
	const few = 200
	if os.Getenv("TEST_FEW_FILES") == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" -test.run '^TestFewFiles$|^TestWithheld$' -test.v`, few), exe)
		cmd.Env = append(os.Environ(), "TEST_FEW_FILES=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	if got := withheld(); got != few/2 {
		t.Fatalf("from descriptor %d on", got)
	}
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Fd() > few/2 {
			break
		}
	}
	if text, code := output(t, "echo hello; exit 7"); text != "hello" || code != 7 {
		t.Errorf("%q, exit code %d", text, code)
	}
}

// Whoever starts many at once keeps no descriptor.
func TestStartLeavesNothing(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	output(t, "true")
	before := count()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				output(t, "exit 0")
			}
		})
	}
	all.Wait()
	if after := count(); after > before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
}

func BenchmarkStart(b *testing.B) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	files := []uintptr{null.Fd(), null.Fd(), null.Fd()}
	end := func(b *testing.B, pid, pidfd int, err error) {
		if err != nil {
			b.Fatal(err)
		}
		_ = unix.Close(pidfd)
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}
	b.Run("apart", func(b *testing.B) {
		for b.Loop() {
			pid, pidfd, err := Start("/bin/true", []string{"true"}, syscall.ProcAttr{Files: files})
			end(b, pid, pidfd, err)
		}
	})
	b.Run("as the library does", func(b *testing.B) {
		for b.Loop() {
			pidfd := -1
			pid, _, err := syscall.StartProcess("/bin/true", []string{"true"}, &syscall.ProcAttr{Files: files, Sys: &syscall.SysProcAttr{PidFD: &pidfd}})
			end(b, pid, pidfd, err)
		}
	})
}

// Whatever thread starts it, a process has the timer slack that this program has.
func TestTimerSlack(t *testing.T) {
	want, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pid, pidfd, err := Start("/bin/cat", []string{"cat", "/proc/self/timerslack_ns"}, syscall.ProcAttr{Files: []uintptr{0, w.Fd(), w.Fd()}}, func() error {
		return unix.Prctl(unix.PR_SET_TIMERSLACK, 777_777, 0, 0, 0)
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("a timer slack of %q ns, want %q", got, want)
	}
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
}
