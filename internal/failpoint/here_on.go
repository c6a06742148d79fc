//go:build failpoints

package failpoint

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// Here reports that the program has come to the point p, and returns when it may go on: at once if nobody listens.
func Here(p Point) {
	socket := os.Getenv(SocketVariable)
	if socket == "" {
		return
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "%s %d %s\n", filepath.Base(os.Args[0]), os.Getpid(), p); err != nil {
		return
	}
	_, _ = conn.Read(make([]byte, 1)) // a byte or the end of the listener: both let us go on
}

// Environment returns what a program that starts another one with an environment of its own passes on, for its points to
// be heard too.
func Environment() []string {
	if socket := os.Getenv(SocketVariable); socket != "" {
		return []string{SocketVariable + "=" + socket}
	}
	return nil
}
