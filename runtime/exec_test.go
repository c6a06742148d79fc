package runtime

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestCaptureKeepsWhatComesFirst(t *testing.T) {
	const limit = 16 << 20
	for name, size := range map[string]int{"nothing": 0, "less": limit - 1, "just as much": limit, "one more": limit + 1, "much more": limit + 1<<20} {
		t.Run(name, func(t *testing.T) {
			c, err := newCapture(limit)
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			text := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
			if _, err := c.w.Write(text); err != nil { // as long as a process may write, it is not held up
				t.Fatal(err)
			}
			c.closeWrite()
			if got := c.finish(time.Now().Add(time.Minute)); !bytes.Equal(got, text[:min(size, limit)]) {
				t.Errorf("kept %d bytes of %d, not the first", len(got), size)
			}
		})
	}
}

// A child that was left behind holds the pipe and never writes: what came before it is the answer.
func TestCaptureEndsAtItsDeadline(t *testing.T) {
	c, err := newCapture(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, err := c.w.WriteString("early"); err != nil {
		t.Fatal(err)
	}
	if got := c.finish(time.Now().Add(100 * time.Millisecond)); string(got) != "early" {
		t.Errorf("got %q", got)
	}
}

// slowWriter takes the first write only when it is told to.
type slowWriter struct {
	strings.Builder
	begun, goOn chan struct{}
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if w.begun != nil {
		close(w.begun)
		w.begun = nil
		<-w.goOn
	}
	return w.Builder.Write(p)
}

// The deadline is for those who hold the pipe, not for a client who reads slowly.
func TestASlowClientGetsAllThatWasWritten(t *testing.T) {
	ours, theirs, err := outputPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close() // nobody closes it before the end: a child left behind
	begun, goOn, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	client := &slowWriter{begun: begun, goOn: goOn}
	go func() {
		defer close(done)
		// Hidden, or the copy would go through the kernel.
		passOn(struct{ io.Writer }{client}, ours)
	}()
	if _, err := theirs.WriteString("first "); err != nil {
		t.Fatal(err)
	}
	<-begun
	if _, err := theirs.WriteString("second"); err != nil {
		t.Fatal(err)
	}
	if err := ours.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	<-done
	if got := client.String(); got != "first second" {
		t.Errorf("the client got %q", got)
	}
}

type gone struct{}

func (gone) Write([]byte) (int, error) { return 0, os.ErrClosed }

// A process whose client has gone, or has no use for the output, is not held up.
func TestOutputForNobody(t *testing.T) {
	for name, client := range map[string]io.Writer{"gone": gone{}, "none": nil} {
		t.Run(name, func(t *testing.T) {
			ours, theirs, err := outputPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				passOn(client, ours)
			}()
			if _, err := theirs.Write(make([]byte, 1<<20)); err != nil { // more than a pipe holds
				t.Fatal(err)
			}
			theirs.Close()
			<-done
		})
	}
}

func TestFirstSize(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	sent, closed, silent := make(chan Size, 1), make(chan Size), make(chan Size)
	sent <- Size{Width: 80, Height: 25}
	close(closed)
	for name, tt := range map[string]struct {
		ctx   context.Context
		sizes <-chan Size
		want  Size
	}{
		"the client's":          {t.Context(), sent, Size{Width: 80, Height: 25}},
		"the client has none":   {t.Context(), closed, Size{}},
		"the client sends none": {t.Context(), silent, Size{}},
		"the client has gone":   {ended, silent, Size{}},
		"no terminal":           {t.Context(), nil, Size{}},
	} {
		if got := firstSize(tt.ctx, tt.sizes); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
