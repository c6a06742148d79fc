package hold

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is held is open until the process ends, and the program ends with it.
func TestHoldsUntilTheProcessEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hold")
	if err := os.WriteFile(path, bytes.Clone(Binary()), 0o755); err != nil {
		t.Fatal(err)
	}
	process := exec.Command("cat")
	end, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(process.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	holder := exec.Command(path)
	holder.Stdin, holder.Stdout = pidfd, w
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd.Close()
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Fatalf("it is not held: %v", err)
	}
	end.Close()
	if err := process.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("it is held longer than the process lives: %v", err)
	}
	if err := holder.Wait(); err != nil {
		t.Error(err)
	}
}
