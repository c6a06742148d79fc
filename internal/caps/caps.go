// Package caps knows the capabilities by their names in the runtime spec.
package caps

import (
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
)

// Name returns a capability's name: CAP_CHOWN.
func Name(c capability.Cap) string {
	return "CAP_" + strings.ToUpper(c.String())
}

// Bits returns a set of capabilities as the kernel has it. What the kernel does not know is left out, as libcontainer does.
func Bits(names []string) uint64 {
	var bits uint64
	for number, name := range supported() {
		if slices.Contains(names, name) {
			bits |= 1 << uint(number)
		}
	}
	return bits
}

// supported are the names of those that the kernel knows, by their numbers.
var supported = sync.OnceValue(func() map[capability.Cap]string {
	list, err := capability.ListSupported()
	if err != nil {
		list = capability.ListKnown() // the kernel refuses what it does not know
	}
	names := map[capability.Cap]string{}
	for _, c := range list {
		names[c] = Name(c)
	}
	return names
})
