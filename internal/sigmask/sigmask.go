// Package sigmask changes which signals are blocked for one thread, and so for the programs that it starts or becomes.
//
// A keeper that was replaced in place starts with signals blocked, in all its threads. Go keeps it so, and a child gets the
// mask of the thread that starts it.
package sigmask

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Block blocks signals for the calling goroutine, which has a thread to itself until it calls restore.
func Block(signals ...unix.Signal) (restore func()) { return change(unix.SIG_BLOCK, signals) }

// Clear blocks no signal for the calling goroutine, which has a thread to itself until it calls restore. Children are to be
// started like that.
func Clear() (restore func()) { return change(unix.SIG_SETMASK, nil) }

func change(how int, signals []unix.Signal) (restore func()) {
	runtime.LockOSThread()
	var set, old unix.Sigset_t
	for _, s := range signals {
		set.Val[0] |= 1 << (s - 1) // the first 32, on every architecture
	}
	if err := unix.PthreadSigmask(how, &set, &old); err != nil {
		return runtime.UnlockOSThread // with these arguments it cannot fail
	}
	return func() {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
		runtime.UnlockOSThread()
	}
}
