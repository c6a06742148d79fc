package network

import (
	"errors"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

func TestParseRate(t *testing.T) {
	good := map[string]uint64{
		"1k": 1000, "10M": 10_000_000, "1.5G": 1_500_000_000, "1Ki": 1024, "2Mi": 2 << 20, "1000": 1000,
		"1e6": 1_000_000, "1P": 1_000_000_000_000_000, "0.1M": 100_000,
	}
	for text, want := range good {
		if got, err := parseRate(text); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "M", "10Mbit", "999", "1100P", "-1M", "1 M", "NaN", "Inf", "0x10k", "10m"} {
		if got, err := parseRate(text); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: got %d, %v, want ErrInvalidArgument", text, got, err)
		}
	}
}

func TestBandwidthOf(t *testing.T) {
	got, err := bandwidthOf(map[string]string{ingressAnnotation: "1M", egressAnnotation: "2M", "other": "x"})
	if want := (bandwidth{1e6, 2e6}); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, err := bandwidthOf(nil); err != nil || got != (bandwidth{}) {
		t.Errorf("no annotations: got %v, %v", got, err)
	}
	if _, err := bandwidthOf(map[string]string{egressAnnotation: "fast"}); err == nil {
		t.Error("a rate that is none was taken")
	}
}
