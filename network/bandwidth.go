package network

import (
	"fmt"
	"math"
	"strconv"

	"github.com/berth-node/berth/internal/errdefs"
)

// The annotations that limit a pod's traffic, as the CNI bandwidth plugin and kubernetes know them.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// bandwidth is what a pod may receive (Ingress) and send (Egress), in bits per second. 0 is no limit.
type bandwidth struct{ Ingress, Egress uint64 }

// bandwidthOf reads the limits from a pod's annotations.
func bandwidthOf(annotations map[string]string) (bandwidth, error) {
	var b bandwidth
	for key, limit := range map[string]*uint64{ingressAnnotation: &b.Ingress, egressAnnotation: &b.Egress} {
		text, ok := annotations[key]
		if !ok {
			continue
		}
		rate, err := parseRate(text)
		if err != nil {
			return bandwidth{}, fmt.Errorf("annotation %s: %w", key, err)
		}
		*limit = rate
	}
	return b, nil
}

// rateSuffixes are those of Kubernetes quantities.
var rateSuffixes = map[string]float64{
	"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50,
}

// parseRate reads a Kubernetes quantity of bits per second. Kubernetes takes 1k to 1P here.
func parseRate(text string) (uint64, error) {
	end := len(text)
	for end > 0 && (text[end-1] >= 'a' && text[end-1] <= 'z' || text[end-1] >= 'A' && text[end-1] <= 'Z') {
		end--
	}
	factor, known := rateSuffixes[text[end:]]
	number, err := strconv.ParseFloat(text[:end], 64)
	rate := math.Ceil(number * factor)
	if !known || err != nil || !(rate >= 1e3 && rate <= 1e15) {
		return 0, fmt.Errorf("bandwidth %q: must be a quantity from 1k to 1P (bits per second): %w", text, errdefs.ErrInvalidArgument)
	}
	return uint64(rate), nil
}
