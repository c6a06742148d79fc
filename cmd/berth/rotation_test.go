package main

import (
	"errors"
	"testing"

	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/errdefs"
)

func TestLogSize(t *testing.T) {
	for text, want := range map[string]int64{"10Mi": 10 << 20, "16k": 16000, "-1": -1} {
		if got, err := logSize(&config.Kubelet{LogMaxSize: text}); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "big", "100m"} {
		if _, err := logSize(&config.Kubelet{LogMaxSize: text}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
