package main

import (
	"os"
	"runtime"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // its C constructor joins and makes the namespaces, before Go runs

	"github.com/berth-node/berth/internal/startfifo"
	"github.com/berth-node/berth/runtime/launch/filter"
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		// Init runs on one processor and on this thread alone (it sets both itself) and never returns.
		filter.Receive()
		if err := startfifo.BlockInit(); err != nil {
			panic(err) // it would not wait for its start
		}
		growStack(false)
		libcontainer.Init()
	}
	// libcontainer's Start has a thread enter the container's mount namespace and never brings it back. It must not be
	// the main thread, which cannot end without the process and is what /proc/PID shows to others. So that one is for
	// the main goroutine alone, which does nothing: see main.
	runtime.LockOSThread()
}

// growStack makes the stack as large as init needs it while there is next to nothing on it. Step by step it would be copied five
// times, and each copy looks up all functions that are under way. The frame alone does it: what is not used of it, and use is
// false, takes no memory.
//
//go:noinline
func growStack(use bool) {
	if use {
		var frame [60 << 10]byte
		touch(&frame)
	}
}

//go:noinline
func touch(*[60 << 10]byte) {}
