// Package rest gives memory back that a process of ours needed for its work and not for waiting: after a hundred pods have
// started, half of the daemon's heap is room for garbage, and of its own program most was read once, to start.
package rest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// GiveBack collects garbage, gives the kernel the memory that is free then, and lets go of the pages of the running program:
// they stay in the page cache for as long as the kernel likes, and come back, sixteen at a time, where they are used again.
func GiveBack() error {
	debug.FreeOSMemory()
	return dropProgram()
}

// dropProgram lets go of the program's own pages.
func dropProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	for _, r := range clean(maps, exe) {
		// Not unix.Madvise: these addresses are no slice of ours.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r.start, r.end-r.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise: %w", errno)
		}
	}
	return nil
}

// A span is a part of the address space.
type span struct{ start, end uintptr }

// clean returns the mappings of a file that cannot be written to and have no page of their own, such as the linker or a debugger
// leaves: the file has all of them. smaps is as in proc(5).
func clean(smaps []byte, path string) (all []span) {
	var s span
	mapped := false
	for lines := bufio.NewScanner(bytes.NewReader(smaps)); lines.Scan(); {
		line := lines.Text()
		fields := strings.Fields(line)
		if len(fields) >= 5 && !strings.HasSuffix(fields[0], ":") {
			s, mapped = parseSpan(fields[0])
			mapped = mapped && fields[1][1] == '-' && strings.HasSuffix(line, " "+path)
		}
		if mapped && len(fields) == 3 && fields[0] == "Anonymous:" && fields[1] == "0" {
			all = append(all, s)
		}
	}
	return all
}

func parseSpan(text string) (span, bool) {
	from, to, _ := strings.Cut(text, "-")
	start, err := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	return span{uintptr(start), uintptr(end)}, err == nil && err2 == nil && start < end
}
