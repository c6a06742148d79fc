package errdefs

import (
	"fmt"
	"runtime/debug"
)

// A Panic is the error of work that panicked. The stack is for the log and no part of its text.
type Panic struct {
	Value any
	Stack []byte
}

func (p *Panic) Error() string { return fmt.Sprintf("internal error: %v", p.Value) }

// Recover makes a panic the error of the function that defers it. Work on a goroutine of its own that a request or an image
// sets off needs it: a panic there would end the daemon, and with it the work for everybody else.
func Recover(err *error) {
	if v := recover(); v != nil {
		*err = &Panic{Value: v, Stack: debug.Stack()}
	}
}
