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
	_, more := l.after(0)
	l.add(keeper.Exit{ID: "c"}, func(e keeper.Exit) {
		if e.Seq <= future {
			t.Errorf("the new exit has number %d, want more than %d, which a keeper before gave", e.Seq, future)
		}
	})
	select {
	case <-more:
	default:
		t.Error("who waits was not told")
	}
	l.add(keeper.Exit{ID: "c", ExecID: "e"}, func(keeper.Exit) {})

	want := func(after uint64, ids ...string) {
		t.Helper()
		exits, _ := l.after(after)
		if len(exits) != len(ids) {
			t.Fatalf("after %d there are %+v, want %v", after, exits, ids)
		}
		for i, e := range exits {
			if e.ID != ids[i] {
				t.Errorf("after %d there are %+v, want %v", after, exits, ids)
			}
		}
	}
	want(0, "a", "b", "c", "c")
	want(7, "b", "c", "c")
	if e, ok := l.ack(7); !ok || e.ID != "a" {
		t.Errorf("ack gives %+v, %v", e, ok)
	}
	if _, ok := l.ack(7); ok {
		t.Error("it was acknowledged twice")
	}
	want(0, "b", "c", "c")
	l.forget("c")
	want(0, "b", "c")
	if exits, _ := l.after(0); exits[1].ExecID != "e" {
		t.Errorf("after the deletion of the container there is %+v, want the exit of its exec", exits[1])
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
