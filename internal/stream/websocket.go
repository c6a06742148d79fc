package stream

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// A channelProtocol is one of the protocols that exec and attach have over WebSocket: each message begins with the number of a
// channel. kubectl, crictl and critest offer v5 alone, because without the message that closes a half a command that reads
// its standard input to the end never ends.
type channelProtocol struct {
	base64     bool // numbers are digits and data is base64, in messages of text
	halfClose  bool // {255, channel} closes the client's half of a channel
	jsonStatus bool
}

var channelProtocols = map[string]channelProtocol{
	"":                                 {},
	remotecommand.StreamProtocolV1Name: {},
	"base64.channel.k8s.io":            {base64: true},
	remotecommand.StreamProtocolV4Name: {jsonStatus: true},
	"v4.base64.channel.k8s.io":         {base64: true, jsonStatus: true},
	remotecommand.StreamProtocolV5Name: {halfClose: true, jsonStatus: true},
}

// serveWebSocket serves exec and attach to a client of WebSocket. cri-streaming could, but not in v5, keeps messages of up to
// 32 MiB whole, and reads sizes of any length.
func (s *Sessions) serveWebSocket(w http.ResponseWriter, r *http.Request, e *remote) {
	var protocol channelProtocol
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			if len(c.Protocol) == 0 {
				return nil
			}
			for _, name := range c.Protocol {
				if p, known := channelProtocols[name]; known {
					protocol, c.Protocol = p, []string{name}
					return nil
				}
			}
			return fmt.Errorf("none of the protocols %.200q is known", c.Protocol)
		},
		Handler: func(ws *websocket.Conn) { s.serveChannels(ws, protocol, r, e) },
	}.ServeHTTP(w, r)
}

func (s *Sessions) serveChannels(ws *websocket.Conn, protocol channelProtocol, r *http.Request, e *remote) {
	c := &channels{ws: ws, protocol: protocol, idle: s.cfg.IdleTimeout, in: map[byte]*io.PipeWriter{}}
	defer func() { _ = ws.Close() }()
	to := ends{
		stdout:     channel{c, remotecommand.StreamStdOut},
		stderr:     channel{c, remotecommand.StreamStdErr},
		status:     channel{c, remotecommand.StreamErr},
		statusText: !protocol.jsonStatus,
	}
	// What nobody reads is not opened: it would hold up what comes behind it.
	if e.connect.Stdin {
		stdin := c.open(remotecommand.StreamStdIn)
		defer stdin.Close()
		to.stdin = stdin
	}
	if e.connect.TTY {
		sizes := c.open(remotecommand.StreamResize)
		defer sizes.Close()
		to.sizes = sizes
	}
	go c.receive()
	// Clients take the first message, however empty, as the sign that the session stands.
	_, _ = to.status.Write(nil)
	s.runRemote(r.Context(), r.URL.Path, e, to)
}

// channels are those of one WebSocket.
type channels struct {
	ws       *websocket.Conn
	protocol channelProtocol
	idle     time.Duration
	in       map[byte]*io.PipeWriter // by channel, while the client has not closed its half
}

// open makes a channel one on which the client may send. Call it before receive.
func (c *channels) open(number byte) *io.PipeReader {
	r, w := io.Pipe()
	c.in[number] = w
	return r
}

// receive hands on what the client sends until it has gone or breaks the protocol. Messages may be of any length: they are not
// kept.
func (c *channels) receive() {
	defer func() {
		for _, w := range c.in {
			_ = w.Close()
		}
	}()
	var number byte
	buf := make([]byte, 32<<10)
	for {
		c.touch()
		frame, err := c.ws.NewFrameReader()
		if err != nil {
			return
		}
		var head [1]byte
		if _, err := io.ReadFull(frame.HeaderReader(), head[:]); err != nil {
			return
		}
		if frame, err = c.ws.HandleFrame(frame); err != nil {
			return
		}
		if frame == nil {
			continue // a ping, say
		}
		isFirst := head[0]&0x0f != websocket.ContinuationFrame
		if err := c.pass(frame, isFirst, &number, buf); err != nil {
			return
		}
	}
}

// pass hands on a frame. number is the channel of its message, which its first frame sets.
func (c *channels) pass(frame io.Reader, isFirst bool, number *byte, buf []byte) error {
	if isFirst {
		var err error
		if *number, err = readByte(frame); err == io.EOF {
			*number = noChannel // an empty message
			return nil
		} else if err != nil {
			return err
		}
		if c.protocol.base64 {
			*number -= '0'
		}
		if c.protocol.halfClose && *number == remotecommand.StreamClose {
			return c.closeHalf(frame)
		}
	}
	if w := c.in[*number]; w != nil {
		data := frame
		if c.protocol.base64 {
			data = base64.NewDecoder(base64.StdEncoding, frame)
		}
		_, _ = io.CopyBuffer(w, data, buf) // it may be over, or no base64
	}
	_, err := io.CopyBuffer(io.Discard, frame, buf)
	return err
}

// noChannel is the number of none.
const noChannel = 254

// closeHalf reads the number of a channel on which no more comes.
func (c *channels) closeHalf(frame io.Reader) error {
	number, err := readByte(frame)
	if err != nil {
		return err
	}
	if w := c.in[number]; w != nil {
		_ = w.Close()
		delete(c.in, number)
	}
	return nil
}

func readByte(r io.Reader) (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

// touch puts off the end of the session for want of traffic.
func (c *channels) touch() { _ = c.ws.SetDeadline(time.Now().Add(c.idle)) }

// channel is one on which messages go to the client.
type channel struct {
	*channels
	number byte
}

func (c channel) Write(data []byte) (int, error) {
	c.touch()
	var message any
	if c.protocol.base64 {
		message = string('0'+rune(c.number)) + base64.StdEncoding.EncodeToString(data)
	} else {
		message = append([]byte{c.number}, data...)
	}
	if err := websocket.Message.Send(c.ws, message); err != nil {
		return 0, err
	}
	return len(data), nil
}
