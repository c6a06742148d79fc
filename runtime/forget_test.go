package runtime

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
)

// fakeKeeper answers hello as a keeper does, and each request as answer says.
func fakeKeeper(t *testing.T, answer func(keeper.Kind) error) *keeper.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if err := answerAll(conn.(*net.UnixConn), answer); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}()
	k, err := keeper.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Close()
		l.Close()
		<-served
	})
	return k
}

func answerAll(conn *net.UnixConn, answer func(keeper.Kind) error) error {
	for {
		var msg keeper.Message
		if _, err := wire.Read(conn, &msg); err != nil {
			return err
		}
		back := keeper.Message{Kind: keeper.KindAnswer, Number: msg.Number}
		switch {
		case msg.Kind == keeper.KindHello:
			back.Body = []byte(`{"version":1,"keeper":{"pid":7,"startTime":8}}`)
		case msg.Number == 0:
			continue
		default:
			back.Error = keeper.EncodeError(answer(msg.Kind))
		}
		if err := wire.Write(conn, back); err != nil {
			return err
		}
	}
}

// A container that the keeper was still making when its daemon died is undone by the keeper itself, which tells of no exit:
// the next daemon, which wants to forget it, asks again.
func TestForgetWhatTheKeeperUndoes(t *testing.T) {
	var mu sync.Mutex // an answer is no synchronization to the race detector
	var asked []keeper.Kind
	k := fakeKeeper(t, func(kind keeper.Kind) error {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, kind)
		switch {
		case kind == keeper.KindSignal:
			return errdefs.ErrNotFound // it has no process yet
		case len(asked) < 5:
			return errdefs.ErrFailedPrecondition // it is being made
		}
		return nil
	})
	r, _ := newKeeperless(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.forgetIn(ctx, k, "c1", make(chan struct{})); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	want := []keeper.Kind{keeper.KindDelete, keeper.KindSignal, keeper.KindDelete, keeper.KindSignal, keeper.KindDelete}
	if !slices.Equal(asked, want) {
		t.Errorf("the keeper was asked %v, want %v", asked, want)
	}
}
