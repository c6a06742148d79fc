//go:build failpoints

package failpoint

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestHereWaitsForAByte(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(SocketVariable, path)
	passed := make(chan struct{})
	go func() {
		Here(SandboxReady)
		close(passed)
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	want := fmt.Sprintf("%s %d %s\n", filepath.Base(os.Args[0]), os.Getpid(), SandboxReady)
	if err != nil || line != want {
		t.Errorf("read %q, %v; want %q", line, err, want)
	}
	select {
	case <-passed:
		t.Error("it did not wait")
	default:
	}
	if _, err := conn.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	<-passed
	l.Close()
	Here(SandboxReady) // nobody listens
}
