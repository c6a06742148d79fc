// Package sysmon lets the monitor thread of Go's runtime wake less often.
//
// That thread sleeps 20 µs at a time while a program is young or at work, a hundred times in 10 ms, mostly to find that nothing
// has to be done. The kernel may wake a sleeper later than asked, by the thread's timer slack (proc(5), timerslack_ns; 50 µs as
// a rule), and so wakes it together with others or not before the slack is over.
//
// What depends on it is how soon other goroutines get the processor of one that stays in a system call.
//
// A thread has the slack of the one that makes it, and so has a process: the monitor thread makes threads too, when none is
// idle. Where a thread other than the main one starts processes, it calls Restore first. A program with cgo can do better: see
// runtime/launch/monitor.
package sysmon

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// slack in nanoseconds. Ten times what it was.
const slack = "500000"

// given is the slack in nanoseconds that the program was started with, less than 1 if it cannot be told: packages are initialized
// on the main thread.
var given, _ = unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)

// Restore gives the calling thread, to which its goroutine is locked, the timer slack that the program was started with.
func Restore() {
	if given > 0 {
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(given), 0, 0, 0)
	}
}

// Calm raises the timer slack of the monitor thread. It is for the beginning of a program, when that thread, the first that Go
// makes, is the next after the main thread. What fails changes nothing.
func Calm() {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	// Not os.Getpid: the init of a container has a pid namespace of its own, and the node's /proc.
	main, err := os.Readlink("/proc/self")
	if err != nil {
		return
	}
	first := 0
	for _, name := range names {
		if tid, err := strconv.Atoi(name); err == nil && name != main && (first == 0 || tid < first) {
			first = tid
		}
	}
	if first == 0 {
		return
	}
	// Of another thread than the one that asks it takes CAP_SYS_NICE.
	_ = os.WriteFile("/proc/"+strconv.Itoa(first)+"/timerslack_ns", []byte(slack), 0)
}
