package memfile

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSealedCannotBeChanged(t *testing.T) {
	f, err := Sealed("test", Data, strings.NewReader("content"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for what, change := range map[string]func() error{
		"write":    func() error { _, err := f.WriteAt([]byte("x"), 0); return err },
		"truncate": func() error { return f.Truncate(0) },
		"grow":     func() error { return f.Truncate(100) },
		"unseal":   func() error { _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); return err },
	} {
		if change() == nil {
			t.Errorf("%s: no error", what)
		}
	}
	content := make([]byte, 100)
	if n, _ := f.ReadAt(content, 0); string(content[:n]) != "content" {
		t.Errorf("it has %q", content[:n])
	}
}

func TestProgramCanBeExecuted(t *testing.T) {
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Skip("no program to copy: ", err)
	}
	f, err := Sealed("test", Program, bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if out, err := exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
