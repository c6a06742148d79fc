package cgroups

import (
	"errors"
	"strings"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
)

func TestChooseDriver(t *testing.T) {
	for _, tc := range []struct {
		driver  Driver
		systemd bool
		want    Driver
		err     error
	}{
		{"", true, Systemd, nil},
		{"", false, Cgroupfs, nil},
		{Cgroupfs, true, Cgroupfs, nil},
		{Systemd, false, "", errdefs.ErrFailedPrecondition},
		{"openrc", true, "", errdefs.ErrInvalidArgument},
	} {
		h := &Host{Driver: tc.driver}
		err := h.chooseDriver(tc.systemd)
		if !errors.Is(err, tc.err) || (err == nil && h.Driver != tc.want) {
			t.Errorf("%q, systemd %v: got %q, %v; want %q, %v", tc.driver, tc.systemd, h.Driver, err, tc.want, tc.err)
		}
	}
}

func TestLimitations(t *testing.T) {
	whole := func() *Host {
		return &Host{Unified: true, Swap: true, PSI: true, AtomicKill: true,
			Controllers: []string{"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}}
	}
	if got := whole().Limitations(); len(got) != 0 {
		t.Errorf("a node that has everything lacks %q", got)
	}
	for _, tc := range []struct {
		word string
		lose func(*Host)
	}{
		{"hugetlb", func(h *Host) { h.Controllers = []string{"cpu", "cpuset", "io", "memory", "pids"} }},
		{"swap", func(h *Host) { h.Swap = false }},
		{"pressure", func(h *Host) { h.PSI = false }},
		{"cgroup.kill", func(h *Host) { h.AtomicKill = false }},
	} {
		h := whole()
		tc.lose(h)
		if got := h.Limitations(); len(got) != 1 || !strings.Contains(got[0], tc.word) {
			t.Errorf("%s: got %q", tc.word, got)
		}
	}
	v1 := &Host{Controllers: []string{"cpu"}}
	text := strings.Join(v1.Limitations(), "\n")
	for _, word := range []string{"cgroup v1", "memory", "pids", "blkio", "devices", "freezer", "cpuacct"} {
		if !strings.Contains(text, word) {
			t.Errorf("nothing about %s in:\n%s", word, text)
		}
	}
}
