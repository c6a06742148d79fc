package runtime

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestParseNetDev(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
 net1: 7 6 5 4 0 0 0 0 3 2 1 9 0 0 0 0
  eth0:1296 14 2 3 0 0 0 0 866 11 4 5 0 0 0 0
`
	want := []InterfaceStats{
		{Name: "eth0", RxBytes: 1296, RxPackets: 14, RxErrors: 2, RxDropped: 3, TxBytes: 866, TxPackets: 11, TxErrors: 4, TxDropped: 5},
		{Name: "net1", RxBytes: 7, RxPackets: 6, RxErrors: 5, RxDropped: 4, TxBytes: 3, TxPackets: 2, TxErrors: 1, TxDropped: 9},
	}
	if got := parseNetDev(text); !reflect.DeepEqual(got, want) {
		t.Errorf("parseNetDev:\n%+v\nwant\n%+v", got, want)
	}
}

func TestImageSubPath(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// A link to the host's root must lead to the image's root.
	if err := os.Symlink("/", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	for sub, want := range map[string]string{
		"a": root + "/a", "a/b": root + "/a/b", "link/a": root + "/a", "link": root,
		"none": "", "file": "", "../x": "", "/a": "", "link/etc": "",
	} {
		got, err := imageSubPath(root, sub)
		if (err == nil) != (want != "") || got != want {
			t.Errorf("sub path %q: %q, %v; want %q", sub, got, err, want)
		}
	}
}
