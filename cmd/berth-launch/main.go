// Go's runtime would otherwise keep the files of a CPU limit open and follow it. It looks for them before main all the same, in
// mountinfo (Go 1.26): more than a megabyte of text among the host's mounts of a node with 500 pods, a few lines away from them.
//
//go:debug containermaxprocs=0

// berth-launch does jobs of the keeper with libcontainer: it creates a container, starts a process in one, destroys or
// checkpoints one. The keeper starts a few ahead of need, so that a job finds one waiting.
//
// It is also the program that libcontainer runs as `berth-launch init`, for every container and every exec. That is why
// it is a binary of its own, as small as can be: see init.go.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
	"github.com/berth-node/berth/runtime/launch"
	_ "github.com/berth-node/berth/runtime/launch/monitor"
	_ "github.com/berth-node/berth/runtime/launch/stages"
)

const (
	jobSocket  = 3 // on which the keeper sends the job
	hostMounts = 4 // the mount namespace of the host, with keeper.LeanArg
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == launch.FilterArg {
		launch.LoadFilter() // on the main thread, see init.go
	}
	// Executed by the number of a descriptor, it would have that for a name in ps and top.
	name := []byte("berth-launch\x00")
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
	// A job allocates a megabyte, and after a few of them the process ends: collecting that would only cost time.
	debug.SetGCPercent(-1)
	// Not on this goroutine: to go on after each of its waits it would have to be handed to its thread by another one.
	done := make(chan error)
	go func() { done <- run() }()
	if err := <-done; err != nil {
		fmt.Fprintln(os.Stderr, "berth-launch:", err)
		os.Exit(1)
	}
}

func run() error {
	file := os.NewFile(jobSocket, "job socket")
	conn, err := net.FileConn(file)
	if err != nil {
		return fmt.Errorf("descriptor %d is to be the keeper's socket (this program is started by berth-keeper): %w", jobSocket, err)
	}
	file.Close()
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("descriptor %d is a %T, want a unix stream socket", jobSocket, conn)
	}
	var host *os.File
	if len(os.Args) > 1 && os.Args[1] == keeper.LeanArg {
		unix.CloseOnExec(hostMounts) // a container that had it could leave
		host = os.NewFile(hostMounts, "the host's mounts")
	}
	return launch.Serve(unixConn, host)
}
