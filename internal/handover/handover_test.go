package handover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/wire"
)

// TestMain is the successor where a test has started one: a program whose argument says how it behaves.
func TestMain(m *testing.M) {
	if _, inherited := os.LookupEnv(variable); inherited {
		if err := succeed(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The ways of a successor, in the order of what they get to.
const (
	diesAtOnce        = "dies at once"
	diesAtOffer       = "dies at the offer"
	hangsAtOffer      = "hangs at the offer"
	isUnable          = "is unable"
	saysSomethingElse = "says something else"
	diesAtTake        = "dies at take"
	hangsAtTake       = "hangs at take"
	worksAndHangs     = "works, and hangs"
	worksForEver      = "works for ever"
	worksAndServes    = "works, and serves"
	fails             = "fails"
	diesAtYours       = "dies before yours"
	serves            = "serves"
)

func succeed(way string) error {
	hang := func() error { select {} }
	if way == diesAtOnce {
		return nil
	}
	p, err := Inherit()
	if err != nil {
		return err
	}
	switch way {
	case diesAtOffer:
		return nil
	case hangsAtOffer:
		return hang()
	case isUnable:
		p.Unable(errors.New("the records are too new"))
		return nil
	case saysSomethingElse:
		return send(p.conn, message{Kind: serving})
	}
	if p.Version != "1" || p.Folders != (Folders{"/root", "/run"}) {
		return fmt.Errorf("the offer is %+v", p)
	}
	if err := p.Able("2"); err != nil {
		return err
	}
	ctx, e, err := p.Take(context.Background())
	if err != nil {
		return err
	}
	work := func(times int) {
		for range times {
			p.worked = time.Time{} // it is said no sooner than needed
			p.Working()
			time.Sleep(testStall / 5)
		}
	}
	switch way {
	case diesAtTake:
		return nil
	case hangsAtTake:
		return hang()
	case worksAndHangs:
		work(2)
		return hang()
	case worksForEver:
		work(1 << 30)
	case worksAndServes:
		work(10)
	case fails:
		p.Failed(errors.New("the disk is full"))
		return nil
	case diesAtYours:
		return send(p.conn, message{Kind: serving})
	}
	if err := p.Serving(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("abandoned after the hand-over: %w", context.Cause(ctx))
	}
	_, err = fmt.Fprintf(e.Files["report"], "%s %s %t %s\n", e.Program, e.Pending, e.Watched, e.Addresses["report"])
	return err
}

// testStall is how long a successor may be silent in tests that says when it gets on.
const testStall = time.Second

// try starts a successor of that way, which has little time to answer.
func try(t *testing.T, ctx context.Context, way string) (*Successor, error) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := start(exe, []string{way}, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	if strings.HasPrefix(way, "hangs") {
		s.ableLimit, s.servingLimit = time.Second, time.Second
	}
	if way == hangsAtTake {
		s.ableLimit = ableLimit // a busy machine starts programs slowly
	}
	switch way {
	case hangsAtTake, worksAndHangs, worksAndServes:
		s.stallLimit, s.servingLimit = testStall, servingLimit
	case worksForEver:
		s.servingLimit = 2 * testStall
	}
	return s, s.offer(ctx, exe, "1", Folders{"/root", "/run"})
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func wantEnded(t *testing.T, s *Successor) {
	t.Helper()
	select {
	case <-s.ended:
	default:
		t.Error("the successor lives on")
	}
}

// One that takes its time and says that it gets on has it.
func TestSuccessorTakesOver(t *testing.T) {
	for _, way := range []string{serves, worksAndServes} {
		t.Run(way, func(t *testing.T) { testTakesOver(t, way) })
	}
}

func testTakesOver(t *testing.T, way string) {
	s, err := try(t, t.Context(), way)
	if err != nil {
		t.Fatal(err)
	}
	if s.Version != "2" {
		t.Errorf("version %q", s.Version)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	pid := s.Pid()
	e := Estate{
		Program: "/usr/bin/berth", Watched: true, Pending: []byte(`["url"]`),
		Addresses: map[string]string{"report": "a pipe"}, Files: map[string]*os.File{"other": r, "report": w},
	}
	if err := s.Take(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	if s.Pid() != pid || pid <= 0 {
		t.Errorf("process %d became process %d", pid, s.Pid())
	}
	got, err := bufio.NewReader(r).ReadString('\n')
	if want := "/usr/bin/berth [\"url\"] true a pipe\n"; err != nil || got != want {
		t.Errorf("it has %q, %v, want %q", got, err, want)
	}
	<-s.ended
}

// A successor that does not get to "able" is dead when the predecessor hears of it.
func TestSuccessorThatIsNotAble(t *testing.T) {
	for way, want := range map[string]string{
		diesAtOnce:        "has ended without a word",
		diesAtOffer:       "has ended without a word",
		hangsAtOffer:      "does not answer",
		isUnable:          "cannot take over: the records are too new",
		saysSomethingElse: "unexpected word",
	} {
		t.Run(way, func(t *testing.T) {
			s, err := try(t, t.Context(), way)
			wantError(t, err, want)
			wantEnded(t, s)
			if refused := errors.Is(err, errdefs.ErrFailedPrecondition); refused != (way == isUnable) {
				t.Errorf("refused: %t", refused)
			}
		})
	}
}

func TestSuccessorThatDoesNotServe(t *testing.T) {
	for way, want := range map[string]string{
		diesAtTake:    "has ended without a word",
		hangsAtTake:   "does not answer",
		worksAndHangs: "does not answer",
		worksForEver:  "does not answer",
		fails:         "the new daemon failed: the disk is full",
	} {
		t.Run(way, func(t *testing.T) {
			s, err := try(t, t.Context(), way)
			if err != nil {
				t.Fatal(err)
			}
			wantError(t, s.Take(t.Context(), Estate{}), want)
			s.Kill()
			wantEnded(t, s)
		})
	}
}

// Of older versions neither side knows the word that it gets on.
func TestOlderVersions(t *testing.T) {
	t.Run("successor", func(t *testing.T) {
		s, err := try(t, t.Context(), hangsAtTake)
		if err != nil {
			t.Fatal(err)
		}
		s.works, s.stallLimit, s.servingLimit = false, servingLimit, testStall
		wantError(t, s.Take(t.Context(), Estate{}), "does not answer")
	})
	t.Run("predecessor", func(t *testing.T) {
		old, p := inherited(t)
		p.Working()
		p.Failed(errors.New("the disk is full"))
		if m, _, err := receive(old, wordLimit, failed); err != nil {
			t.Errorf("it says %+v, %v", m, err)
		}
	})
}

// A node is not left to a daemon that has died while the word was on its way to it.
func TestSuccessorThatDiesBeforeTheEnd(t *testing.T) {
	s, err := try(t, t.Context(), diesAtYours)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Take(t.Context(), Estate{}); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	wantError(t, s.Commit(), "has ended without a word")
}

func TestUpgradeIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 500*time.Millisecond, errors.New("given up"))
	defer cancel()
	s, err := try(t, ctx, hangsAtOffer)
	if err == nil {
		t.Error("no error")
	}
	wantEnded(t, s)
}

func TestProgramThatIsNotThere(t *testing.T) {
	_, err := Start(t.Context(), "/no/such/berth", nil, "1", Folders{}, false)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// beginning is a connection whose other end a predecessor is to be inherited from.
func beginning(t *testing.T) *net.UnixConn {
	t.Helper()
	old, theirs, err := wire.Pair(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	fd, err := unix.Dup(int(theirs.Fd())) // Inherit closes it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { old.Close() })
	t.Setenv(variable, strconv.Itoa(fd))
	return old
}

// inherited is a predecessor that has made its offer, and its end of the connection.
func inherited(t *testing.T) (*net.UnixConn, *Predecessor) {
	t.Helper()
	old := beginning(t)
	say(t, old, message{Kind: offer, Protocol: protocol, Version: "1", Folders: &Folders{"/root", "/run"}})
	p, err := Inherit()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	return old, p
}

func say(t *testing.T, conn *net.UnixConn, m message, files ...*os.File) {
	t.Helper()
	if err := send(conn, m, files...); err != nil {
		t.Fatal(err)
	}
}

func TestNobodyToInheritFrom(t *testing.T) {
	if p, err := Inherit(); p != nil || err != nil {
		t.Errorf("%v, %v", p, err)
	}
}

// What a successor starts is no successor.
func TestInheritedOnce(t *testing.T) {
	_, p := inherited(t)
	if value, ok := os.LookupEnv(variable); ok {
		t.Errorf("%s is still %q", variable, value)
	}
	raw, err := p.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %v", flags, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func TestOfferThatIsNone(t *testing.T) {
	for name, say := range map[string]func(*net.UnixConn) error{
		"end":          func(c *net.UnixConn) error { return c.Close() },
		"another word": func(c *net.UnixConn) error { return send(c, message{Kind: take}) },
		"no folders":   func(c *net.UnixConn) error { return send(c, message{Kind: offer, Protocol: protocol}) },
		"noise":        func(c *net.UnixConn) error { _, err := io.WriteString(c, "hello, this is no frame"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			old := beginning(t)
			if err := say(old); err != nil {
				t.Fatal(err)
			}
			if p, err := Inherit(); p != nil || err == nil {
				t.Errorf("%v, %v", p, err)
			}
		})
	}
}

// A program that goes back in time refuses what it does not know, and says so.
func TestOfferOfANewerProtocol(t *testing.T) {
	old := beginning(t)
	say(t, old, message{Kind: offer, Protocol: protocol + 1, Folders: &Folders{}})
	_, err := Inherit()
	wantError(t, err, "protocol version")
	m, _, err := receive(old, wordLimit, unable)
	if err != nil || !strings.Contains(m.Why, "protocol version 2") {
		t.Errorf("it says %+v, %v", m, err)
	}
}

func TestPredecessorDies(t *testing.T) {
	t.Run("before take", func(t *testing.T) {
		old, p := inherited(t)
		old.Close()
		if _, _, err := p.Take(t.Context()); !errors.Is(err, ErrAbandoned) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("during recovery", func(t *testing.T) {
		old, p := inherited(t)
		say(t, old, message{Kind: take, Estate: &Estate{}})
		ctx, _, err := p.Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ctx.Err() != nil {
			t.Errorf("ended before: %v", context.Cause(ctx))
		}
		old.Close()
		<-ctx.Done()
		if err := context.Cause(ctx); !errors.Is(err, ErrAbandoned) {
			t.Errorf("cause %v", err)
		}
		if err := p.Serving(ctx); !errors.Is(err, ErrAbandoned) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("before yours", func(t *testing.T) {
		old, p := inherited(t)
		say(t, old, message{Kind: take, Estate: &Estate{}})
		ctx, _, err := p.Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _, _ = receive(old, wordLimit, serving)
			old.Close()
		}()
		if err := p.Serving(ctx); !errors.Is(err, ErrAbandoned) {
			t.Errorf("error %v", err)
		}
	})
}

func TestSuccessorIsToldToEnd(t *testing.T) {
	_, p := inherited(t)
	why := errors.New("a signal")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	if _, _, err := p.Take(ctx); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
}

// Descriptors that nobody has named are not kept open.
func TestDescriptorsAreNotLeft(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	old, p := inherited(t)
	say(t, old, message{Kind: take, Estate: &Estate{}, Files: []string{"one", "another"}}, w)
	w.Close()
	if _, _, err := p.Take(t.Context()); err == nil {
		t.Error("two files of which one came")
	}
	_ = r.SetReadDeadline(time.Now().Add(wordLimit))
	if n, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v: somebody has it open", n, err)
	}
}
