// Package sysmon lets the monitor thread of Go's runtime wake less often.
//
// That thread sleeps 20 µs at a time while a program is young or at work, a hundred times in the 10 ms of a launcher or
// an init, mostly to find that nothing has to be done: a tenth of their CPU time, and of a busy daemon's. The kernel
// may wake a sleeper later than asked, by the thread's timer slack (proc(5), timerslack_ns; 50 µs as a rule), and so wakes it
// together with others or not before the slack is over.
//
// What depends on it is how soon other goroutines get the processor of one that stays in a system call.
package sysmon

import (
	"os"
	"strconv"
)

// slack in nanoseconds. Ten times what it was.
const slack = "500000"

// Calm raises the timer slack of the monitor thread, and of no other: children get that of the thread that starts them. It
// is for the beginning of a program, when that thread, the first that Go makes, is the next after the main thread. What fails
// changes nothing.
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
