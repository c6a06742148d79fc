package image

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestStallWatch(t *testing.T) {
	const limit = time.Minute
	tests := map[string]struct {
		run  func(w *stallWatch)
		want bool // stalled
	}{
		"nobody waits":     {func(*stallWatch) { time.Sleep(time.Hour) }, false},
		"one waits long":   {func(w *stallWatch) { w.wait(); time.Sleep(limit + 1) }, true},
		"one waits enough": {func(w *stallWatch) { w.wait()(true); time.Sleep(time.Hour) }, false},
		"bytes now and then": {func(w *stallWatch) {
			for range 10 {
				end := w.wait()
				time.Sleep(limit - 1)
				end(true)
			}
		}, false},
		"another gets bytes": {func(w *stallWatch) {
			w.wait()
			for range 10 {
				end := w.wait()
				time.Sleep(limit - 1)
				end(true)
			}
		}, false},
		"another gets errors": {func(w *stallWatch) {
			w.wait()
			for range 10 {
				end := w.wait()
				time.Sleep(limit / 4)
				end(false)
			}
		}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				w := watchStalls(limit, cancel)
				tt.run(w)
				synctest.Wait()
				w.stop()
				if got := ctx.Err() != nil; got != tt.want {
					t.Errorf("stalled: %v, want %v", got, tt.want)
				}
			})
		})
	}
}
