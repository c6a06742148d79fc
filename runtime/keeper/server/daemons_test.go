package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// A new daemon takes charge while the one before still has sessions.
func TestTwoDaemons(t *testing.T) {
	n := newNode(t)
	n.run("c", `read x; exit 3`, func(r *keeper.CreateRequest) { r.Stdin, r.StdinOnce = true, true })
	n.run("late", "exec sleep 1000")
	old := n.c
	if _, _, err := old.Exec(n.ctx(), execRequest("late", "old", "exec sleep 1000")); err != nil {
		t.Fatal(err)
	}
	n.c = n.dial()
	<-old.Relieved()
	select {
	case <-n.c.Relieved():
		t.Error("the new one is relieved")
	default:
	}
	// The old one holds the input no more: it would not end otherwise.
	if err := n.c.CloseStdin(n.ctx(), "c"); err != nil {
		t.Fatal(err)
	}
	e := n.exit("c", "")
	n.wantCode(e, 3)
	n.c.Ack(e.Seq)
	// What the old one still asks for is done.
	if err := old.Signal(n.ctx(), "late", "old", int(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if e := <-old.Exits(); e.ExecID != "old" || e.Code != 143 {
		t.Errorf("the old one gets %+v", e)
	} else {
		old.Ack(e.Seq)
	}
	if _, _, err := old.Exec(n.ctx(), execRequest("late", "older", "read x; exit 4")); err != nil {
		t.Fatal(err)
	}
	if e := <-old.Exits(); e.ExecID != "older" || e.Code != 1 && e.Code != 4 {
		t.Errorf("the old one gets %+v", e)
	}
	// It leaves without having acknowledged: the new one hears of it.
	old.Close()
	n.c.Ack(n.exit("late", "older").Seq)
	eventually(t, "the acknowledgement", func() bool { return len(n.state("late").Execs) == 0 })

	// The keeper dies: the new one holds what was made by either.
	n.kill()
	if err := unix.Kill(n.pid("late"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.wantAdopted(n.exit("late", ""), 137)
}

// The new daemon fails, and the one before goes on.
func TestTakeChargeAgain(t *testing.T) {
	n := newNode(t)
	n.run("c", `read x; exit 3`, func(r *keeper.CreateRequest) { r.Terminal, r.Stdin = true, true })
	old := n.c
	failing := n.dial()
	<-old.Relieved()
	failing.Close()
	if err := old.TakeCharge(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-old.Relieved():
		t.Error("still relieved")
	default:
	}
	n.run("more", "exit 5")
	n.wantCode(n.exit("more", ""), 5) // and what it is to hold has come before
	n.crash()
	a := n.attach("c")
	io.WriteString(a.Stdin, "end\n")
	// The terminal and the exit code are there because the old one has got everything again.
	for range 2 {
		select {
		case e := <-n.c.Exits():
			if e.ID == "c" {
				n.wantAdopted(e, 3)
			}
		case <-n.ctx().Done():
			t.Fatal("no exit")
		}
	}
}

// hello says hello by hand and returns the answer, and what comes after it.
func (n *node) hello(body string) (keeper.Message, error) {
	n.t.Helper()
	nc, err := net.Dial("unix", filepath.Join(n.dir, keeper.SocketName))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { nc.Close() })
	conn := nc.(*net.UnixConn)
	if err := wire.Write(conn, keeper.Message{Kind: keeper.KindHello, Number: 1, Body: []byte(body)}); err != nil {
		n.t.Fatal(err)
	}
	var answer keeper.Message
	if _, err := wire.Read(conn, &answer); err != nil {
		n.t.Fatal(err)
	}
	if answer.Error == nil {
		return answer, nil
	}
	_, err = wire.Read(conn, new(keeper.Message))
	return answer, err
}

// Daemons of other versions are spoken with or refused, by their first message.
func TestVersions(t *testing.T) {
	n := newNode(t)
	const all = `"speaks":{"oldest":1,"newest":2}`
	for _, tc := range []struct{ hello, answer string }{
		{`{"version":1}`, fmt.Sprintf(`{"version":1,"keeper":{"pid":%d,"startTime":%d}}`, n.c.Keeper().Pid, n.c.Keeper().StartTime)}, // word by word what that version knows
		{`{"version":1,"speaks":{"oldest":1,"newest":1}}`, `{"version":1,`},
		{`{"version":1,` + all + `}`, `{"version":2,` + all},
		{`{"version":2,"speaks":{"oldest":2,"newest":9}}`, `{"version":2,` + all},
	} {
		answer, _ := n.hello(tc.hello)
		if err := answer.Error.Decode(); err != nil || !strings.HasPrefix(string(answer.Body), tc.answer) {
			t.Errorf("hello %s is answered by %s, %v; want %s", tc.hello, answer.Body, err, tc.answer)
		}
	}
	for _, hello := range []string{`{"version":99}`, `{"version":0}`, `{"version":3,"speaks":{"oldest":3,"newest":9}}`, `{}`} {
		answer, err := n.hello(hello)
		if refusal := answer.Error.Decode(); !errors.Is(refusal, errdefs.ErrFailedPrecondition) {
			t.Errorf("hello %s is answered by %v", hello, refusal)
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("after hello %s: %v", hello, err)
		}
	}
}
