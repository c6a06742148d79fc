// Package procfs reads the few facts of /proc that berth decides by, and knows the names of sysctls.
package procfs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process identifies a process for good: the kernel gives a pid again, but not with the same start time.
type Process struct {
	Pid int
	// StartTime is in clock ticks since boot, field 22 of /proc/PID/stat (proc(5)).
	StartTime uint64
}

// Stat is what /proc/PID/stat says of a process.
type Stat struct {
	StartTime uint64
	// State is the letter of field 3: R, S, D, T, Z, X, …
	State byte
}

// ReadStat reads the state of a process; the error is fs.ErrNotExist if there is none.
func ReadStat(pid int) (Stat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, err
	}
	return parseStat(string(data))
}

func parseStat(line string) (Stat, error) {
	// The command name, in parentheses, may hold anything, parentheses too: count from the last one.
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return Stat{}, fmt.Errorf("stat of a process: no command in %q", line)
	}
	fields := strings.Fields(line[end+1:])
	const state, start = 0, 22 - 3 // fields 3 and 22
	if len(fields) <= start {
		return Stat{}, fmt.Errorf("stat of a process: %d fields after the command, want more than %d", len(fields), start)
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return Stat{}, fmt.Errorf("stat of a process: start time: %w", err)
	}
	return Stat{StartTime: ticks, State: fields[state][0]}, nil
}

// Alive reports whether exactly this process still runs; a zombie does not.
func (p Process) Alive() bool {
	if p.Pid <= 0 {
		return false
	}
	st, err := ReadStat(p.Pid)
	return err == nil && st.StartTime == p.StartTime && st.State != 'Z' && st.State != 'X'
}

// userHZ is the unit of the kernel's times in /proc, ticks a second: 100 on every architecture that Linux still has but
// alpha (USER_HZ).
const userHZ = 100

// StartedAt is when the process started, to the hundredth of a second. Steps of the clock since then move it.
func (p Process) StartedAt() (time.Time, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}, err
	}
	boot := time.Now().Add(-time.Duration(now.Nano()))
	return boot.Add(time.Duration(p.StartTime) * time.Second / userHZ), nil
}

// BootID names this boot of the kernel.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}
