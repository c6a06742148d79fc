package runtime

import (
	"errors"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// sampleMounts has a shared, a slave and a private mount below each other, and a shared one under a private one.
const sampleMounts = `22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:26 / /mnt/private rw,relatime - tmpfs tmpfs rw
31 22 0:27 / /mnt/slave rw,relatime master:5 - tmpfs tmpfs rw
32 22 0:28 / /mnt/both rw,relatime shared:7 master:5 - tmpfs tmpfs rw
33 22 0:29 / /mnt/over rw,relatime shared:8 - tmpfs tmpfs rw
34 33 0:30 / /mnt/over rw,relatime - tmpfs tmpfs rw
`

func TestPropagationThatTheHostDoesNotHave(t *testing.T) {
	const (
		toContainer = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		both        = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
	)
	for _, c := range []struct {
		source string
		mode   cri.MountPropagation
		ok     bool
	}{
		{"/srv", toContainer, true},
		{"/srv", both, true},
		{"/mnt/private/x", toContainer, false},
		{"/mnt/private/x", both, false},
		{"/mnt/privately", both, true}, // its name only begins like that of a mount
		{"/mnt/slave", toContainer, true},
		{"/mnt/slave", both, false},
		{"/mnt/both/x/y", both, true},
		{"/mnt/over", both, false}, // what lies on top counts
	} {
		mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(sampleMounts), mountinfo.ParentsFilter(c.source))
		if err != nil {
			t.Fatal(err)
		}
		err = checkPropagation(mounts, c.source, &cri.Mount{HostPath: c.source, ContainerPath: "/data", Propagation: c.mode})
		if c.ok != (err == nil) || err != nil && !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("%s with %s: %v", c.source, c.mode, err)
		}
	}
}
