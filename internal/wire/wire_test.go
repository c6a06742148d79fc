package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

type message struct {
	Name string
	Body string
}

// pair returns the two ends of a stream socket.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

func TestMessageAndDescriptorsArrive(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	// Larger than a socket buffer, so that the frame goes in several writes.
	want := message{Name: "create", Body: strings.Repeat("x", 1<<20)}
	sent := make(chan error, 1)
	go func() {
		sent <- errors.Join(Write(a, want, w), Write(a, message{Name: "second"}), w.Close())
	}()

	var got message
	files, err := Read(b, &got)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("first message came as %q with %d bytes", got.Name, len(got.Body))
	}
	if len(files) != 1 {
		t.Fatalf("%d descriptors came, want 1", len(files))
	}
	var second message
	if more, err := Read(b, &second); err != nil || second.Name != "second" || len(more) != 0 {
		t.Errorf("second message: %+v, %d descriptors, %v", second, len(more), err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if _, err := files[0].WriteString("through"); err != nil {
		t.Fatal(err)
	}
	files[0].Close()
	if data, _ := io.ReadAll(r); string(data) != "through" {
		t.Errorf("the descriptor is not the pipe that was sent: read %q", data)
	}
}

func TestEndOfConnection(t *testing.T) {
	for name, sent := range map[string][]byte{
		"between frames": nil,
		"in the length":  {0, 0},
		"in the body":    {0, 0, 0, 9, '{'},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			if _, err := a.Write(sent); err != nil {
				t.Fatal(err)
			}
			a.Close()
			_, err := Read(b, &message{})
			want := io.ErrUnexpectedEOF
			if sent == nil {
				want = io.EOF
			}
			if !errors.Is(err, want) {
				t.Errorf("Read: %v, want %v", err, want)
			}
		})
	}
}

func TestRubbishIsAnError(t *testing.T) {
	for name, sent := range map[string][]byte{
		"too large": {0xff, 0xff, 0xff, 0xff},
		"not JSON":  {0, 0, 0, 2, '}', '{'},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			if _, err := a.Write(sent); err != nil {
				t.Fatal(err)
			}
			if _, err := Read(b, &message{}); err == nil {
				t.Error("Read took it")
			}
		})
	}
}
