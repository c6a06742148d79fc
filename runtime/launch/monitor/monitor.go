//go:build cgo

// Package monitor lets the monitor thread of Go's runtime wake less often, in a launcher and in the init of a container.
//
// What it is about says package sysmon. Here the thread need not be looked for: with cgo Go makes its threads by
// pthread_create, and the first is the monitor. And whoever makes a thread or a process hands its timer slack down: the monitor
// makes threads, when a goroutine stays in a system call and none is idle, and some of those start an init. All threads but
// the monitor have the slack that the program was started with, so that a workload has it too.
//
// The slack is twenty times sysmon's. Nothing here waits for the processor of a goroutine that is in a system call: what a
// launcher or an init does it does one step after the other.
//
// This package needs importing only. The linker sends the callers of pthread_create in this binary to wrap.c; Go's runtime is
// the only one.
package monitor

// #cgo LDFLAGS: -Wl,--wrap=pthread_create
import "C"
