package volume

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestMountNFS(t *testing.T) {
	for _, tt := range []struct {
		nfs     v1.NFSVolumeSource
		options []string
		want    string
	}{
		{v1.NFSVolumeSource{Server: "host", Path: "/a"}, nil, "-t nfs -- host:/a DIR"},
		{v1.NFSVolumeSource{Server: "192.0.2.1", Path: "/a", ReadOnly: true}, nil, "-t nfs -o ro -- 192.0.2.1:/a DIR"},
		{v1.NFSVolumeSource{Server: "2001:db8::1", Path: "/"}, []string{"vers=4.2", "noatime"}, "-t nfs -o vers=4.2,noatime -- [2001:db8::1]:/ DIR"},
		{v1.NFSVolumeSource{Server: "host", Path: "/a", ReadOnly: true}, []string{"hard"}, "-t nfs -o ro,hard -- host:/a DIR"},
	} {
		if got := strings.Join(mountNFS(&tt.nfs, tt.options, "DIR"), " "); got != tt.want {
			t.Errorf("%+v %v: %s, want %s", tt.nfs, tt.options, got, tt.want)
		}
	}
}
