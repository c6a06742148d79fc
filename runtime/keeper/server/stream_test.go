package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

func (n *node) attach(id string) *keeper.Attachment {
	n.t.Helper()
	a, err := n.c.Attach(n.ctx(), id)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { a.Close() })
	return a
}

// rest reads an attachment to its end.
func rest(t *testing.T, a *keeper.Attachment) (stdout, stderr string) {
	t.Helper()
	var out [3]strings.Builder
	for {
		stream, data, err := a.Next()
		if errors.Is(err, io.EOF) {
			return out[keeper.Stdout].String(), out[keeper.Stderr].String()
		}
		if err != nil {
			t.Fatal(err)
		}
		out[stream].Write(data)
	}
}

// until reads an attachment until its stdout ends in suffix.
func until(t *testing.T, a *keeper.Attachment, suffix string) string {
	t.Helper()
	var out strings.Builder
	for !strings.HasSuffix(out.String(), suffix) {
		_, data, err := a.Next()
		if err != nil {
			t.Fatalf("after %d bytes: %v", out.Len(), err)
		}
		out.Write(data)
	}
	return out.String()
}

func TestAttach(t *testing.T) {
	n := newNode(t)
	n.create("cat", `while read line; do echo "$line"; echo "err $line" >&2; done; echo end`, func(r *keeper.CreateRequest) { r.Stdin, r.StdinOnce = true, true })
	one, two := n.attach("cat"), n.attach("cat")
	if err := n.c.Start(n.ctx(), "cat"); err != nil {
		t.Fatal(err)
	}
	io.WriteString(one.Stdin, "first\n")
	if got := until(t, one, "err first\n"); !strings.Contains(got, "first\n") {
		t.Errorf("one got %q", got)
	}
	io.WriteString(two.Stdin, "second\n")
	until(t, one, "err second\n")
	// A client that goes takes nothing with it, also when it is the last.
	one.Close()
	three := n.attach("cat")
	io.WriteString(three.Stdin, "third\n")
	until(t, three, "err third\n")
	// Only when the keeper and all clients have closed theirs the workload sees its end.
	if err := n.c.CloseStdin(n.ctx(), "cat"); err != nil {
		t.Fatal(err)
	}
	if err := n.c.CloseStdin(n.ctx(), "cat"); err != nil {
		t.Errorf("second CloseStdin: %v", err)
	}
	if late := n.attach("cat"); late.Stdin != nil {
		t.Error("an attachment after CloseStdin has an input")
	}
	io.WriteString(two.Stdin, "fourth\n")
	two.Stdin.Close()
	three.Stdin.Close()
	n.wantCode(n.exit("cat", ""), 0)
	if out, errs := rest(t, two); out != "first\nsecond\nthird\nfourth\nend\n" || errs != "err first\nerr second\nerr third\nerr fourth\n" {
		t.Errorf("two got %q and %q", out, errs)
	}
	if out, _ := n.logged("cat"); out != "first\nsecond\nthird\nfourth\nend\n" {
		t.Errorf("the log has %q", out)
	}
	if _, err := n.c.Attach(n.ctx(), "cat"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Attach to an exited container: %v", err)
	}
}

func TestWithoutStdinTheInputIsEmpty(t *testing.T) {
	n := newNode(t)
	n.create("cat", "cat; echo done")
	a := n.attach("cat")
	if a.Stdin != nil || a.Console != nil {
		t.Error("the attachment has an input or a console")
	}
	if err := n.c.Start(n.ctx(), "cat"); err != nil {
		t.Fatal(err)
	}
	if out, _ := rest(t, a); out != "done\n" {
		t.Errorf("got %q", out)
	}
	n.exit("cat", "")
}

func TestASlowClientIsCutOff(t *testing.T) {
	n := newNode(t)
	const rounds, size = 12, 1_000_000 // together more than a client may be behind
	script := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do i=$((i+1)); printf '%%0%dd\n' $i; read go; done`, rounds, size)
	n.create("loud", script, func(r *keeper.CreateRequest) { r.Stdin = true })
	slow, good := n.attach("loud"), n.attach("loud")
	if err := n.c.Start(n.ctx(), "loud"); err != nil {
		t.Fatal(err)
	}
	for i := range rounds {
		if got := until(t, good, "\n"); len(got) != size+1 {
			t.Fatalf("in round %d the good client got %d bytes", i, len(got))
		}
		io.WriteString(good.Stdin, "go\n")
	}
	n.wantCode(n.exit("loud", ""), 0) // the workload has not waited for the slow one
	var err error
	for err == nil {
		_, _, err = slow.Next()
	}
	if !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("the slow client ends with %v", err)
	}
	if out, _ := n.logged("loud"); len(out) != rounds*(size+1) {
		t.Errorf("the log has %d bytes, want %d", len(out), rounds*(size+1))
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	n.create("tty", `stty size; read x; echo "got $x"; exit 6`, func(r *keeper.CreateRequest) { r.Terminal, r.Stdin = true, true })
	a := n.attach("tty")
	if a.Console == nil || a.Stdin == nil {
		t.Fatal("the attachment has no console")
	}
	if err := n.c.Resize(n.ctx(), "tty", 132, 43); err != nil {
		t.Fatal(err)
	}
	if err := n.c.Start(n.ctx(), "tty"); err != nil {
		t.Fatal(err)
	}
	until(t, a, "43 132\r\n")
	io.WriteString(a.Stdin, "it\n")
	n.wantCode(n.exit("tty", ""), 6)
	if out, _ := rest(t, a); !strings.HasSuffix(out, "got it\r\n") {
		t.Errorf("the terminal showed %q", out)
	}
	if out, _ := n.logged("tty"); !strings.HasSuffix(out, "got it\r\n") {
		t.Errorf("the log has %q", out)
	}
	n.run("plain", "sleep 1000")
	if err := n.c.Resize(n.ctx(), "plain", 1, 1); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Resize without a terminal: %v", err)
	}
}

func TestTerminalOutputIsWhole(t *testing.T) {
	n := newNode(t)
	n.run("tty", `stty -onlcr; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done`, func(r *keeper.CreateRequest) { r.Terminal = true })
	n.wantCode(n.exit("tty", ""), 0)
	out, _ := n.logged("tty")
	numbers(t, out, 3000)
}

func execRequest(id, execID, script string) keeper.ExecRequest {
	return keeper.ExecRequest{ContainerID: id, ExecID: execID, Process: fmt.Appendf(nil, `{"args":["/bin/sh","-c",%q]}`, script)}
}

func TestExec(t *testing.T) {
	n := newNode(t)
	n.create("c", "sleep 1000")
	if _, _, err := n.c.Exec(n.ctx(), execRequest("c", "early", "true")); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Exec in a created container: %v", err)
	}
	if err := n.c.Start(n.ctx(), "c"); err != nil {
		t.Fatal(err)
	}

	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer outR.Close()
	req := execRequest("c", "one", "cat; echo more; exit 9")
	req.Stdin, req.Stdout = inR, outW
	p, console, err := n.c.Exec(n.ctx(), req)
	if err != nil || p.Pid <= 0 || console != nil {
		t.Fatalf("Exec: %+v, console %v, %v", p, console, err)
	}
	inR.Close()
	outW.Close()
	if _, _, err := n.c.Exec(n.ctx(), execRequest("c", "one", "true")); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Exec with the same ID: %v", err)
	}
	inW.WriteString("through\n")
	inW.Close()
	if out, _ := io.ReadAll(outR); string(out) != "through\nmore\n" {
		t.Errorf("the output is %q", out)
	}
	e := n.exit("c", "one")
	n.wantCode(e, 9)
	if s := n.state("c"); len(s.Execs) != 1 || s.Execs[0].Exit == nil {
		t.Errorf("before the acknowledgement the execs are %+v", s.Execs)
	}
	n.c.Ack(e.Seq)
	if s := n.state("c"); len(s.Execs) != 0 {
		t.Errorf("after the acknowledgement the execs are %+v", s.Execs)
	}

	if _, _, err := n.c.Exec(n.ctx(), execRequest("c", "kill", "exec sleep 1000")); err != nil {
		t.Fatal(err)
	}
	if err := n.c.Signal(n.ctx(), "c", "kill", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	n.wantCode(n.exit("c", "kill"), 137)
}

// A process may have ended before the keeper has read of it.
func TestExecThatEndsAtOnce(t *testing.T) {
	n := newNode(t)
	n.run("c", "sleep 1000")
	for i := range 30 {
		id := fmt.Sprintf("e%d", i)
		if _, _, err := n.c.Exec(n.ctx(), execRequest("c", id, fmt.Sprintf("exit %d", i))); err != nil {
			t.Fatal(err)
		}
		e := n.exit("c", id)
		n.wantCode(e, i)
		n.c.Ack(e.Seq)
	}
}

func TestExecWithTerminal(t *testing.T) {
	n := newNode(t)
	n.run("c", "sleep 1000")
	req := execRequest("c", "tty", "read x; echo got $x")
	req.Terminal = true
	_, console, err := n.c.Exec(n.ctx(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	console.WriteString("it\n")
	out, err := io.ReadAll(console) // ends with EIO when the terminal is closed
	if !errors.Is(err, unix.EIO) || !strings.HasSuffix(string(out), "got it\r\n") {
		t.Errorf("the terminal showed %q, %v", out, err)
	}
	n.wantCode(n.exit("c", "tty"), 0)
}
