package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/wire"
)

// peer is a keeper that knows nothing but hello, which it answers as answer says, and what it hears next.
func peer(t *testing.T, answer func(Hello) (string, *WireError)) (socket string, heard <-chan Message) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	messages := make(chan Message, 16)
	go func() {
		defer close(messages)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		conn := nc.(*net.UnixConn)
		for {
			var msg Message
			if _, err := wire.Read(conn, &msg); err != nil {
				return
			}
			if msg.Kind != KindHello {
				messages <- msg
				continue
			}
			var hello Hello
			if err := json.Unmarshal(msg.Body, &hello); err != nil {
				t.Error(err)
			}
			body, refusal := answer(hello)
			back := Message{Kind: KindAnswer, Number: msg.Number, Error: refusal}
			if refusal == nil {
				back.Body = []byte(body)
			}
			if err := wire.Write(conn, back); err != nil {
				t.Error(err)
			}
			if refusal != nil {
				return
			}
		}
	}()
	return socket, messages
}

// A keeper of version 1 takes a hello of exactly its own version and knows no range.
func TestDialAKeeperOfVersion1(t *testing.T) {
	socket, heard := peer(t, func(h Hello) (string, *WireError) {
		if h.Version != 1 {
			return "", EncodeError(errdefs.ErrFailedPrecondition)
		}
		return `{"version":1,"keeper":{"pid":7,"startTime":8}}`, nil
	})
	c, err := Dial(context.Background(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Protocol() != 1 || c.Build() != "" || c.Keeper() != (Process{7, 8}) {
		t.Errorf("version %d, build %q, keeper %+v", c.Protocol(), c.Build(), c.Keeper())
	}
	if msg := <-heard; msg.Kind != KindRestored {
		t.Errorf("the keeper hears %+v first", msg)
	}
}

// Where no version is common, nothing is said but hello, and the error tells what to do.
func TestDialAKeeperOfAnotherVersion(t *testing.T) {
	for name, answer := range map[string]func(Hello) (string, *WireError){
		"refuses": func(Hello) (string, *WireError) {
			return "", &WireError{Class: "failed-precondition", Message: "the keeper speaks protocol versions 3 to 4"}
		},
		"answers": func(Hello) (string, *WireError) {
			return `{"version":4,"speaks":{"oldest":3,"newest":4}}`, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			socket, heard := peer(t, answer)
			_, err := Dial(context.Background(), socket)
			if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "versions 3 to 4") || !strings.Contains(err.Error(), "drain") {
				t.Errorf("Dial: %v", err)
			}
			if msg, ok := <-heard; ok {
				t.Errorf("the keeper hears %+v", msg)
			}
		})
	}
}
