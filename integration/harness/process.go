package harness

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// StartTime returns when a process was started, in ticks since the boot, and false if it has ended: a zombie has.
func StartTime(pid int) (string, bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", false
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:])) // the name before may hold anything
	return fields[19], fields[0] != "Z" && fields[0] != "X"
}
