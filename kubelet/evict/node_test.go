package evict

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

func TestNode(t *testing.T) {
	proc := t.TempDir()
	for name, text := range map[string]string{
		"meminfo":                "MemTotal:        1000 kB\nMemFree:          300 kB\nMemAvailable:     800 kB\nInactive(file):   200 kB\nHugePages_Total:       0\n",
		"loadavg":                "0.10 0.20 0.30 2/70000 12345\n",
		"sys/kernel/pid_max":     "4194304\n",
		"sys/kernel/threads-max": "100000\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(proc, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := Node(proc, proc, proc)(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for signal, want := range map[Signal]Observation{MemoryAvailable: {500 << 10, 1000 << 10}, PIDAvailable: {30000, 100000}} {
		if all[signal] != want {
			t.Errorf("%s: %+v, want %+v", signal, all[signal], want)
		}
	}
	if o := all[NodeFsAvailable]; o.Capacity <= 0 || o.Available > o.Capacity || o != all[ImageFsAvailable] {
		t.Errorf("nodefs %+v, imagefs %+v", o, all[ImageFsAvailable])
	}
	if err := os.WriteFile(filepath.Join(proc, "meminfo"), []byte("MemTotal: 1 kB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Node(proc, proc, proc)(context.Background()); err == nil {
		t.Error("memory that is not told is taken for none")
	}
	if all, err := Node("/proc", proc, proc)(context.Background()); err != nil || all[MemoryAvailable].Available <= 0 || all[PIDAvailable].Available <= 0 {
		t.Errorf("this node: %v, %v", all, err)
	}
}
