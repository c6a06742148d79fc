package stream

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// serveSPDY serves exec and attach to a client of SPDY. cri-streaming could, but reads sizes of any length.
func (s *Sessions) serveSPDY(w http.ResponseWriter, r *http.Request, e *remote) {
	protocol, err := httpstream.Handshake(r, w, remotecommand.SupportedStreamingProtocols)
	if err != nil {
		return // the client has been told
	}
	ctx, end := context.WithCancel(r.Context())
	defer end()
	arrivals := make(chan arrival)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(st httpstream.Stream, replied <-chan struct{}) error {
		select {
		case arrivals <- arrival{st, replied}:
			return nil
		case <-ctx.Done(): // one too many waits for this
			return ctx.Err()
		}
	})
	if conn == nil {
		return // the client has been told
	}
	defer func() { _ = conn.Close() }()
	conn.SetIdleTimeout(s.cfg.IdleTimeout)
	go func() {
		select {
		case <-conn.CloseChan(): // the client broke the protocol, say, and is there still
			end()
		case <-ctx.Done():
		}
	}()
	v4, v3 := protocol == remotecommand.StreamProtocolV4Name, protocol == remotecommand.StreamProtocolV3Name
	opened, err := awaitStreams(ctx, s.cfg.CreationTimeout, arrivals, e.connect.streamTypes(v4 || v3))
	if err != nil {
		s.cfg.Log.Warn("streaming session not opened", "path", r.URL.Path, "err", err)
		return
	}
	s.runRemote(ctx, r.URL.Path, e, ends{
		stdin:      opened[remotecommand.StreamTypeStdin],
		stdout:     opened[remotecommand.StreamTypeStdout],
		stderr:     opened[remotecommand.StreamTypeStderr],
		sizes:      opened[remotecommand.StreamTypeResize],
		status:     opened[remotecommand.StreamTypeError],
		statusText: !v4,
	})
}

// arrival is a stream that the client has opened. replied is closed when the client was sent the word that it is open.
type arrival struct {
	httpstream.Stream
	replied <-chan struct{}
}

// streamTypes are the streams that the session needs: the client opens them.
func (c Connect) streamTypes(sizes bool) (needed []string) {
	for _, t := range []struct {
		name   string
		wanted bool
	}{
		{remotecommand.StreamTypeError, true},
		{remotecommand.StreamTypeStdin, c.Stdin},
		{remotecommand.StreamTypeStdout, c.Stdout},
		{remotecommand.StreamTypeStderr, c.Stderr},
		{remotecommand.StreamTypeResize, c.TTY && sizes},
	} {
		if t.wanted {
			needed = append(needed, t.name)
		}
	}
	return needed
}

// awaitStreams returns the client's streams by their types when all that are needed are open. A client may open others of
// those types, and each once.
func awaitStreams(ctx context.Context, limit time.Duration, arrivals <-chan arrival, needed []string) (map[string]httpstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	opened := map[string]httpstream.Stream{}
	isMissing := func(t string) bool { return opened[t] == nil }
	for slices.ContainsFunc(needed, isMissing) {
		select {
		case a := <-arrivals:
			t := a.Headers().Get(remotecommand.StreamType)
			if !slices.Contains(streamTypes, t) || !isMissing(t) {
				return nil, fmt.Errorf("the client opens a stream of type %.20q that it has open, or that there is not", t)
			}
			select {
			case <-a.replied:
				opened[t] = a.Stream
			case <-ctx.Done():
				return nil, fmt.Errorf("the client does not read: %w", ctx.Err())
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("the client opens none of its streams %q: %w", slices.DeleteFunc(needed, func(t string) bool { return !isMissing(t) }), ctx.Err())
		}
	}
	return opened, nil
}

var streamTypes = Connect{Stdin: true, Stdout: true, Stderr: true, TTY: true}.streamTypes(true)

const (
	// maxSPDYData is the largest piece of data that the library gets at once, in bytes. It keeps up to 250 of a session whose
	// process does not read.
	maxSPDYData = 8 << 10
	// maxSPDYControl bounds the frames without data, in bytes: some names and values, of 4 KiB at the most when compressed. The
	// library would expand one of a MiB to a GiB.
	maxSPDYControl = 4 << 10
)

// spdyReader reads a connection of SPDY and cuts large frames of data into small ones: the library makes room for up to 16 MiB
// for each frame, and queues them.
type spdyReader struct {
	r     *bufio.Reader
	head  []byte // what is to come of a frame's head
	piece int    // what is to come of its content
	rest  int    // what is to come in further frames of the same stream
	id    uint32
	flags byte // for the last of these
}

func (s *spdyReader) Read(p []byte) (int, error) {
	if len(s.head) == 0 && s.piece == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	if len(s.head) > 0 {
		n := copy(p, s.head)
		s.head = s.head[n:]
		return n, nil
	}
	n, err := s.r.Read(p[:min(len(p), s.piece)])
	s.piece -= n
	return n, err
}

// next begins a frame.
func (s *spdyReader) next() error {
	if s.rest == 0 {
		var head [8]byte // a bit that says control, then the stream or the type; flags, length
		if _, err := io.ReadFull(s.r, head[:]); err != nil {
			return err
		}
		id, length := binary.BigEndian.Uint32(head[:4]), int(binary.BigEndian.Uint32(head[4:])&0xffffff)
		if id&(1<<31) != 0 {
			if length > maxSPDYControl {
				return fmt.Errorf("spdy: a control frame of %d bytes", length)
			}
			s.head, s.piece = head[:], length
			return nil
		}
		s.id, s.flags, s.rest = id, head[4], length
	}
	s.piece = min(s.rest, maxSPDYData)
	s.rest -= s.piece
	word := uint32(s.piece)
	if s.rest == 0 {
		word |= uint32(s.flags) << 24 // the end of the stream is one of them
	}
	s.head = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(s.head[:0], s.id), word)
	return nil
}

// boundedSPDY makes r a reader for the library.
func boundedSPDY(r *bufio.Reader) *bufio.Reader { return bufio.NewReader(&spdyReader{r: r}) }
