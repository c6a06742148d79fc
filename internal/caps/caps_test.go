package caps

import (
	"testing"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

func TestBits(t *testing.T) {
	for _, test := range []struct {
		names []string
		want  uint64
	}{
		{nil, 0},
		{[]string{"CAP_KILL", "CAP_CHOWN", "CAP_KILL"}, 1<<unix.CAP_KILL | 1<<unix.CAP_CHOWN},
		{[]string{"CAP_SYS_ADMIN", "CAP_NO_SUCH", "sys_admin", ""}, 1 << unix.CAP_SYS_ADMIN},
	} {
		if got := Bits(test.names); got != test.want {
			t.Errorf("%q: %#x, want %#x", test.names, got, test.want)
		}
	}
	if got := Name(capability.CAP_NET_BIND_SERVICE); got != "CAP_NET_BIND_SERVICE" {
		t.Errorf("the name is %q", got)
	}
}
