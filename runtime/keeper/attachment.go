package keeper

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/berth-node/berth/internal/errdefs"
)

// A Stream is one of a workload's outputs.
type Stream byte

const (
	// StreamEnd is no output: it says that the container has ended and all was sent.
	StreamEnd Stream = 0
	Stdout    Stream = 1
	Stderr    Stream = 2
)

// Frames of an attachment's output: one byte for the stream, four for the length (big endian), the data.
const (
	// FrameHeader is the length of a frame's head, in bytes.
	FrameHeader = 5
	// MaxFrame bounds the data of one frame, in bytes.
	MaxFrame = 64 << 10
)

// PutFrameHeader writes the head of a frame with n bytes of data into b, which has FrameHeader bytes.
func PutFrameHeader(b []byte, stream Stream, n int) {
	b[0] = byte(stream)
	binary.BigEndian.PutUint32(b[1:FrameHeader], uint32(n))
}

// An Attachment is a view on a container's output from now on, and a way to its input. Several may be open at once.
// The container never waits for an attachment: one that falls too far behind is cut off.
type Attachment struct {
	// Stdin writes to the workload: the FIFO, or the terminal. It is nil if the container has no input (any more). Who
	// closes it ends only this attachment's input; see CloseStdin for the workload's.
	Stdin *os.File
	// Console is the master end of the terminal, for its size; nil without one.
	Console *os.File

	output *os.File
	r      *bufio.Reader
	buf    []byte
}

// Attach opens a view on a container that has not exited; others are of class ErrFailedPrecondition. The caller closes
// the attachment. It outlives the client's connection.
func (c *Client) Attach(ctx context.Context, id string) (*Attachment, error) {
	out, err := c.call(ctx, KindAttach, Ref{ID: id}, nil, nil)
	if err != nil {
		return nil, err
	}
	defer out.close()
	a := &Attachment{
		Stdin:   out.take(FileStdin),
		Console: out.take(FileConsole),
		output:  out.take(FileOutput),
	}
	if a.output == nil {
		a.Close()
		return nil, errors.New("keeper: answer to attach has no output")
	}
	a.r = bufio.NewReader(a.output)
	return a, nil
}

// Next returns the next piece of output, valid until the call after. It is io.EOF when the container has ended and all
// its output was returned, and an error of class ErrUnavailable when this reader was too slow and was cut off, or the
// keeper died. Close unblocks it.
func (a *Attachment) Next() (Stream, []byte, error) {
	var head [FrameHeader]byte
	if _, err := io.ReadFull(a.r, head[:]); err != nil {
		return 0, nil, fmt.Errorf("keeper: attachment cut off: %w: %w", noEOF(err), errdefs.ErrUnavailable)
	}
	stream, n := Stream(head[0]), int(binary.BigEndian.Uint32(head[1:]))
	if stream == StreamEnd {
		return 0, nil, io.EOF
	}
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("keeper: attachment frame of %d bytes", n)
	}
	if cap(a.buf) < n {
		a.buf = make([]byte, n)
	}
	data := a.buf[:n]
	if _, err := io.ReadFull(a.r, data); err != nil {
		return 0, nil, fmt.Errorf("keeper: attachment cut off: %w: %w", noEOF(err), errdefs.ErrUnavailable)
	}
	return stream, data, nil
}

// Close ends the attachment and closes Stdin and Console. The container is not touched.
func (a *Attachment) Close() error {
	for _, f := range []*os.File{a.Stdin, a.Console, a.output} {
		if f != nil {
			f.Close()
		}
	}
	return nil
}

// noEOF keeps an end without a StreamEnd from being taken for a good one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
