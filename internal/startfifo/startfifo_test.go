package startfifo

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Block(path); err != nil {
		t.Fatal(err)
	}
	wantStart(t, path, func() error { return os.WriteFile(path, []byte("0"), 0) }) // as libcontainer's init does
}

// TestStartOfAnInitThatIsHandedTheFIFO has nobody else hold it.
func TestStartOfAnInitThatIsHandedTheFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if _, err := Blocking(path); err == nil {
		t.Error("there is none, and it was opened")
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := Blocking(path)
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	wantStart(t, path, func() error { _, err := unix.Write(int(fifo.Fd()), []byte("0")); return err })
}

// wantStart checks that init, which writes its byte, waits for LetGo and for nothing else.
func wantStart(t *testing.T, path string, write func() error) {
	t.Helper()
	first := open(t, path)
	wantBlocked(t, first, true)
	wrote := make(chan error)
	go func() { wrote <- write() }()
	first.Close() // a reader that comes and goes
	select {
	case err := <-wrote:
		t.Fatalf("init has not waited: %v", err)
	default:
	}

	second := open(t, path)
	wantBlocked(t, second, true)
	gone := LetGo(second.Fd()) // init may be as quick
	wantBlocked(t, second, false)
	second.Close() // and dies
	if err := <-wrote; err != nil {
		t.Fatalf("init, after who let it go has died: %v", err)
	}

	third := open(t, path)
	defer third.Close()
	wantBlocked(t, third, false)
	if LetGo(third.Fd()) == gone {
		t.Errorf("the byte is lost or comes twice: %t, %[1]t", gone)
	}
	if LetGo(third.Fd()) {
		t.Error("the byte comes twice")
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func wantBlocked(t *testing.T, f *os.File, want bool) {
	t.Helper()
	if got, err := Blocked(f.Fd()); err != nil || got != want {
		t.Errorf("Blocked: %v, %v; want %v", got, err, want)
	}
}
