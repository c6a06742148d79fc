package server

import (
	"testing"

	"github.com/berth-node/berth/runtime/keeper"
)

func TestExitLog(t *testing.T) {
	l := newExitLog()
	future := l.last + 1_000_000
	l.adopt(keeper.Exit{ID: "b", Seq: future})
	l.adopt(keeper.Exit{ID: "a", Seq: 7})
	daemon := &conn{}
	l.takeCharge(daemon)
	_, _, more := l.next(&conn{})
	l.add(keeper.Exit{ID: "c"}, nil, func(e keeper.Exit) {
		if e.Seq <= future {
			t.Errorf("the new exit has number %d, want more than %d, which a keeper before gave", e.Seq, future)
		}
	})
	select {
	case <-more:
	default:
		t.Error("who waits was not told")
	}
	l.add(keeper.Exit{ID: "c", ExecID: "e"}, nil, func(keeper.Exit) {})

	// what to gets, in order, if none of it was sent
	of := func(to *conn) (exits []keeper.Exit) {
		for _, p := range l.pending {
			if l.recipient(p) == to {
				exits = append(exits, p.Exit)
			}
		}
		return exits
	}
	want := func(ids ...string) {
		t.Helper()
		exits := of(daemon)
		if len(exits) != len(ids) {
			t.Fatalf("there are %+v, want %v", exits, ids)
		}
		for i, e := range exits {
			if e.ID != ids[i] {
				t.Errorf("there are %+v, want %v", exits, ids)
			}
		}
	}
	want("a", "b", "c", "c")
	for _, id := range []string{"a", "b", "c", "c"} {
		e, ok, _ := l.next(daemon)
		if !ok || e.ID != id {
			t.Fatalf("next is %+v, want that of %s", e, id)
		}
		l.sent(e.Seq, daemon)
	}
	if e, ok, _ := l.next(daemon); ok {
		t.Errorf("%+v is sent twice", e)
	}
	if _, ok := l.ack(7, &conn{}); ok {
		t.Error("somebody else has acknowledged it")
	}
	if e, ok := l.ack(7, daemon); !ok || e.ID != "a" {
		t.Errorf("ack gives %+v, %v", e, ok)
	}
	if _, ok := l.ack(7, daemon); ok {
		t.Error("it was acknowledged twice")
	}
	want("b", "c", "c")
	l.forget("c")
	want("b", "c")
	if exits := of(daemon); exits[1].ExecID != "e" {
		t.Errorf("after the deletion of the container there is %+v, want the exit of its exec", exits[1])
	}
}

// Each exit has one reader: the daemon in charge, or the one before for an exec of its own, as long as it is there.
func TestExitsHaveOneReader(t *testing.T) {
	l := newExitLog()
	older, newer := &conn{}, &conn{}
	if before := l.takeCharge(older); before != nil {
		t.Error("somebody is relieved by the first")
	}
	l.add(keeper.Exit{ID: "first"}, nil, func(keeper.Exit) {})
	first, ok, _ := l.next(older)
	if !ok {
		t.Fatal("the one in charge does not get it")
	}
	l.sent(first.Seq, older)
	if before := l.takeCharge(newer); before != older {
		t.Error("the older one is not relieved")
	}
	// It may have been read by the older one and not be recorded.
	if _, ok := l.ack(first.Seq, older); ok {
		t.Error("the older one has acknowledged what is the newer one's")
	}
	if e, ok, _ := l.next(newer); !ok || e.ID != "first" {
		t.Errorf("the newer one gets %+v", e)
	}
	l.sent(first.Seq, newer)

	l.add(keeper.Exit{ID: "c", ExecID: "e1"}, older, func(keeper.Exit) {})
	l.add(keeper.Exit{ID: "c", ExecID: "e2"}, older, func(keeper.Exit) {})
	e1, ok, _ := l.next(older)
	if !ok || e1.ExecID != "e1" {
		t.Fatalf("the older one gets %+v", e1)
	}
	l.sent(e1.Seq, older)
	if e, ok, _ := l.next(newer); ok {
		t.Errorf("the newer one gets %+v", e)
	}
	if _, ok := l.ack(e1.Seq, older); !ok {
		t.Error("the older one cannot acknowledge its own")
	}
	l.leave(older)
	l.takeCharge(older) // is too late
	if e, ok, _ := l.next(newer); !ok || e.ExecID != "e2" {
		t.Errorf("after the older one has left the newer one gets %+v", e)
	}
	l.add(keeper.Exit{ID: "c", ExecID: "e3"}, older, func(keeper.Exit) {})
	if exits := len(l.pending); exits != 3 || l.recipient(l.pending[2]) != newer {
		t.Errorf("an exec of one that has left: %+v", l.pending)
	}
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"a": true, "3f": true, "web-1_x.y+z": true,
		"": false, ".": false, "..": false, "-a": false, "a/b": false, "a b": false, "ä": false, "a*": false,
	} {
		if validID(id) != want {
			t.Errorf("validID(%q) is %v", id, !want)
		}
	}
}
