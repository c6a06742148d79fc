package keeper

import "sync"

// exitQueue gives exits out in order and never makes the one who puts wait: the goroutine that receives answers is not
// to stand still because a reader of exits does.
type exitQueue struct {
	out  chan Exit
	poke chan struct{} // capacity 1: many exits, one look
	stop chan struct{}

	mu      sync.Mutex
	waiting []Exit
}

func newExitQueue() *exitQueue {
	q := &exitQueue{out: make(chan Exit), poke: make(chan struct{}, 1), stop: make(chan struct{})}
	go q.run()
	return q
}

func (q *exitQueue) put(e Exit) {
	q.mu.Lock()
	q.waiting = append(q.waiting, e)
	q.mu.Unlock()
	select {
	case q.poke <- struct{}{}:
	default:
	}
}

// close closes out; what was not read by then comes again with the next connection.
func (q *exitQueue) close() { close(q.stop) }

func (q *exitQueue) run() {
	defer close(q.out)
	for {
		q.mu.Lock()
		batch := q.waiting
		q.waiting = nil
		q.mu.Unlock()
		for _, e := range batch {
			select {
			case q.out <- e:
			case <-q.stop:
				return
			}
		}
		select {
		case <-q.poke:
		case <-q.stop:
			return
		}
	}
}
