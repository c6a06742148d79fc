package network

import (
	"path/filepath"
	"testing"
)

// A link that goes between the listing of the settings and their change is no reason to refuse a pod its network.
func TestSettingOfALinkThatHasGone(t *testing.T) {
	l := sysctlLog{path: filepath.Join(t.TempDir(), "sysctls.json")}
	gone := filepath.Join(t.TempDir(), "veth1234", "accept_ra")
	if err := l.set(map[string]string{gone: "2"}, nil); err != nil {
		t.Error(err)
	}
	if was, err := l.read(); err != nil || len(was) != 0 {
		t.Errorf("on record: %v, %v", was, err)
	}
}
