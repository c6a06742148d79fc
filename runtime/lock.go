package runtime

import "context"

// An opLock serialises the long operations on one thing. Unlike a sync.Mutex it can be waited for with a deadline, so
// that a call behind a stuck one ends with its caller.
type opLock chan struct{}

func newOpLock() opLock { return make(opLock, 1) }

func (l opLock) lock(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l opLock) unlock() { <-l }
