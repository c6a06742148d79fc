package cgroups

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The files of a cgroup come from the kernel, and from plugins of it: what cannot be read is an error, or left out.
func FuzzFiles(f *testing.F) {
	f.Add("9223372036854771712\n")
	f.Add("max 100000\n")
	f.Add("some avg10=0.00 avg60=1e309 avg300=NaN total=18446744073709551616\nfull total=-1\n")
	f.Add("8:0 rbytes=1 wbytes=x\n8:16 rios=18446744073709551615\n")
	f.Add("usage_usec 18446744073709551615\nuser_usec -5\n\n ")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range []string{"cpu.stat", "cpu.max", "cpu.weight", "memory.current", "memory.stat", "memory.events", "io.stat", "cpu.pressure", "pids.max", "pids.current"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		g := &Group{host: &Host{Unified: true}, paths: map[string]string{"": dir}}
		var s Stats
		err := g.statsV2(&s)
		if err == nil && s.Pids != nil && s.Pids.Current > Unlimited {
			t.Errorf("%+v", s.Pids)
		}
		if err != nil && !strings.Contains(err.Error(), dir) {
			t.Errorf("the error names no file: %v", err)
		}
	})
}

// A parent that is accepted gives a path that stays below the root of the cgroups.
func FuzzParent(f *testing.F) {
	for _, s := range []string{"/kubepods/pod1", "kubepods.slice", "../..", "/a/../../b", "a//b", "kubepods-.slice"} {
		f.Add(s, "id")
	}
	f.Fuzz(func(t *testing.T, parent, id string) {
		for _, driver := range []Driver{Cgroupfs, Systemd} {
			h := &Host{Driver: driver, Unified: true, DefaultParent: "/berth"}
			p, err := h.parent(parent)
			if err != nil {
				continue
			}
			if !strings.HasPrefix(p, "/") || filepath.Clean(p) != p || strings.Contains(p, "/../") || strings.HasSuffix(p, "/..") {
				t.Errorf("%q is %q", parent, p)
			}
		}
	})
}
