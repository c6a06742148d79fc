// Package wire frames JSON messages, with open descriptors, on a unix stream socket.
//
// A frame is a length of four bytes, big endian, and that many bytes of JSON. Descriptors ride with the first byte of
// the frame (SCM_RIGHTS). JSON, and not protobuf, because the messages are few and small, the peers are of one project,
// an unknown field of a newer peer is skipped, and a human with strace can read them.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage bounds the JSON of one frame, in bytes. The largest legal message is an exec with a large environment.
	MaxMessage = 16 << 20
	// MaxFiles bounds the descriptors of one frame (the kernel's SCM_MAX_FD is 253).
	MaxFiles = 16
)

// Write sends one frame. The files stay open and stay the caller's. Concurrent writers must hold a lock of their own.
func Write(conn *net.UnixConn, msg any, files ...*os.File) error {
	body, err := json.Marshal(msg)
	if err != nil {
		return fmt.Errorf("encode %T: %w", msg, err)
	}
	if len(body) > MaxMessage {
		return fmt.Errorf("encode %T: %d bytes are more than a message may have (%d)", msg, len(body), MaxMessage)
	}
	frame := make([]byte, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	copy(frame[4:], body)

	if len(files) > MaxFiles {
		return fmt.Errorf("send %T: %d descriptors are more than a message may carry (%d)", msg, len(files), MaxFiles)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	// The kernel may take less than the whole frame; the descriptors go with the first byte, the rest is plain data.
	n, _, err := conn.WriteMsgUnix(frame, rights, nil)
	if err == nil && n < len(frame) {
		_, err = conn.Write(frame[n:])
	}
	if err != nil {
		return fmt.Errorf("send %T: %w", msg, err)
	}
	return nil
}

// Read receives one frame into msg and returns its descriptors, close-on-exec set, for the caller to close. It returns
// io.EOF if the peer closed the connection between two frames. After an error the connection is of no use any more and
// no descriptor is left open.
func Read(conn *net.UnixConn, msg any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			CloseAll(files)
			files = nil
		}
	}()
	head := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(MaxFiles*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, err
	}
	if oobn > 0 {
		if files, err = parseFiles(oob[:oobn]); err != nil {
			return files, err
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return files, errors.New("receive: descriptors were cut off")
	}
	if n == 0 {
		return files, io.EOF
	}
	if _, err := io.ReadFull(conn, head[n:]); err != nil {
		return files, fmt.Errorf("receive length: %w", noEOF(err))
	}
	size := binary.BigEndian.Uint32(head)
	if size > MaxMessage {
		return files, fmt.Errorf("receive: a message of %d bytes is larger than %d", size, MaxMessage)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(conn, body); err != nil {
		return files, fmt.Errorf("receive body: %w", noEOF(err))
	}
	if err := json.Unmarshal(body, msg); err != nil {
		return files, fmt.Errorf("decode %T: %w", msg, err)
	}
	return files, nil
}

// CloseAll closes files; nil entries are skipped.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func parseFiles(oob []byte) ([]*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive descriptors: %w", err)
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials or the like: nothing of ours
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd) // net sets MSG_CMSG_CLOEXEC; this costs little and keeps the promise if it ever stops
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// noEOF makes an end in the middle of a frame visible as such.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Pair makes a socket to a child, of the given kind (SOCK_STREAM or SOCK_SEQPACKET): our end and theirs, both close-on-exec
// and the caller's to close.
func Pair(kind int) (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "socketpair")
	file := os.NewFile(uintptr(fds[0]), "socketpair")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}
