package rest

import (
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

func TestClean(t *testing.T) {
	const smaps = `00400000-01859000 r-xp 00000000 fe:00 10658182                           /usr/bin/a program
Size:              20836 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
01859000-02e4e000 r--p 01459000 fe:00 10658182                           /usr/bin/a program
Anonymous:             0 kB
02e4e000-02eff000 rw-p 02a4e000 fe:00 10658182                           /usr/bin/a program
Anonymous:             0 kB
03000000-03001000 r--p 02a4e000 fe:00 10658182                           /usr/bin/a program
Anonymous:             4 kB
04000000-04001000 r--p 00000000 fe:00 17                                 /usr/bin/other
Anonymous:             0 kB
7f7200000000-7f7200001000 r--p 00000000 00:00 0 
Anonymous:             0 kB
`
	want := []span{{0x400000, 0x1859000}, {0x1859000, 0x2e4e000}}
	if got := clean([]byte(smaps), "/usr/bin/a program"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// filePages is what this process has of files in memory, in KiB.
func filePages(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestGiveBack also shows that the program runs on.
func TestGiveBack(t *testing.T) {
	program, err := os.ReadFile("/proc/self/exe") // in the page cache, most of it
	if err != nil {
		t.Fatal(err)
	}
	before := filePages(t)
	if err := GiveBack(); err != nil {
		t.Fatal(err)
	}
	if after := filePages(t); after >= before {
		t.Errorf("%d KiB of files before, %d KiB after; the program has %d KiB", before, after, len(program)>>10)
	}
}
