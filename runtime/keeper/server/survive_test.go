package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

func TestTheDaemonDies(t *testing.T) {
	n := newNode(t)
	n.run("first", "exit 1")
	first := n.exit("first", "")
	n.c.Ack(first.Seq)
	n.run("count", `i=0; while [ $i -lt 50000 ]; do i=$((i+1)); echo $i; done; exit 2`)
	n.run("sleep", "exec sleep 1000")
	n.c.Close()
	if err := n.c.Start(n.ctx(), "sleep"); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("a call after Close: %v", err)
	}
	// Nobody is connected until the container has ended.
	log := filepath.Join(n.dir, "count.log")
	eventually(t, "the end of the log", func() bool {
		data, _ := os.ReadFile(log)
		return strings.HasSuffix(string(data), " 50000\n")
	})

	n.c = n.dial()
	e := n.exit("count", "") // and not that of first, which was acknowledged
	n.wantCode(e, 2)
	out, _ := n.logged("count")
	numbers(t, out, 50000)

	// Not acknowledged, it comes again, and again in order.
	if err := n.c.Signal(n.ctx(), "sleep", "", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	last := n.exit("sleep", "")
	n.c.Close()
	n.c = n.dial()
	if again := n.exit("count", ""); again.Seq != e.Seq || !again.At.Equal(e.At) {
		t.Errorf("the exit came as %+v and then as %+v", e, again)
	}
	if again := n.exit("sleep", ""); again.Seq != last.Seq || last.Seq <= e.Seq {
		t.Errorf("the exit came as %+v and then as %+v", last, again)
	}
}

// createHalf asks for the container "half", whose launcher goes no further than its init and the state that tells of it. What
// becomes of the request comes with result.
func (n *node) createHalf() (state string, result <-chan error) {
	n.t.Helper()
	req := n.prepare("half", bundle{Do: "hang-with-init", Args: []string{"/bin/true"}})
	ended := make(chan error)
	go func() {
		_, err := n.c.Create(n.ctx(), req)
		ended <- err
	}()
	state = filepath.Join(n.dir, keeper.LibcontainerDir, "half", "state.json")
	eventually(n.t, "the init", func() bool { _, err := os.Stat(state); return err == nil })
	return state, ended
}

func TestALostConnectionUndoesACreate(t *testing.T) {
	n := newNode(t)
	_, result := n.createHalf()
	n.c.Close()
	if err := <-result; !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Create: %v", err)
	}
	n.c = n.dial()
	eventually(t, "the container to be undone", func() bool {
		_, err := n.c.Create(n.ctx(), n.prepare("half", sh("exit 0")))
		return err == nil
	})
}

// crash kills the keeper and starts another.
func (n *node) crash() {
	n.t.Helper()
	n.kill()
	n.restart()
}

func (n *node) kill() {
	n.t.Helper()
	pid := n.c.Keeper().Pid
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
	<-n.c.Done()
	eventually(n.t, "the keeper to be gone", func() bool { return !alive(pid) })
}

func (n *node) restart() {
	n.t.Helper()
	n.start()
	c, err := n.c.Redial(n.ctx())
	if err != nil {
		n.t.Fatal(err)
	}
	n.c = c
	n.t.Cleanup(func() { c.Close() })
}

// A keeper that dies over a start leaves a container that is started, whenever its init gets to it.
func TestTheKeeperDiesOverAStart(t *testing.T) {
	n := newNode(t)
	p := n.create("c", "echo once; exec sleep 1000")
	n.create("other", "exit 0")
	if err := unix.Kill(p.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	c := n.c
	go func() { result <- c.Start(n.ctx(), "c") }()
	eventually(t, "init to be let go", func() bool {
		blocked, err := isBlocked(filepath.Join(n.dir, keeper.LibcontainerDir, "c", "exec.fifo"))
		return err == nil && !blocked
	})
	n.crash()
	if err := <-result; !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Start: %v", err)
	}
	if s := n.state("c"); s.Phase != keeper.PhaseRunning {
		t.Errorf("init was let go, and the next keeper says %s", s.Phase)
	}
	if s := n.state("other"); s.Phase != keeper.PhaseCreated {
		t.Errorf("nobody has started the other one, and it is %s", s.Phase)
	}
	if err := unix.Kill(p.Pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the workload", func() bool { out, _ := n.logged("c"); return out == "once\n" })
}

// kernelTellsExits says whether this kernel gives the exit code of a process that is no child (6.15).
func kernelTellsExits() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	return unix.IoctlPidfdInfo(fd, &info) == nil
}

func (n *node) wantAdopted(e keeper.Exit, code int) {
	n.t.Helper()
	if !kernelTellsExits() && e.Unknown && e.Code == keeper.UnknownExitCode {
		return
	}
	n.wantCode(e, code)
}

func TestTheKeeperDies(t *testing.T) {
	n := newNode(t)
	n.run("done", "exit 5")
	done := n.exit("done", "")
	n.run("count", `read go; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo $i; done; read end; exit 2`, func(r *keeper.CreateRequest) { r.Stdin = true })
	n.run("tty", `read x; echo got $x; exit 6`, func(r *keeper.CreateRequest) { r.Terminal, r.Stdin = true, true })
	n.create("created", "echo late; exit 8")
	n.run("short", `read x; echo last words; exit 7`, func(r *keeper.CreateRequest) { r.Stdin = true })
	if _, _, err := n.c.Exec(n.ctx(), execRequest("count", "e", "exec sleep 1000")); err != nil {
		t.Fatal(err)
	}
	count, short := n.attach("count"), n.attach("short")

	n.kill()
	// It writes more than a pipe holds, so it waits for the next keeper; and no SIGPIPE.
	io.WriteString(count.Stdin, "go\n")
	// It ends while no keeper is there.
	io.WriteString(short.Stdin, "go\n")
	pid := n.pid("short")
	eventually(t, "the short one to end", func() bool { return !alive(pid) })
	n.restart()

	if again := n.exit("done", ""); again.Seq != done.Seq {
		t.Errorf("the exit of before came as %+v, was %+v", again, done)
	}
	e := n.exit("short", "")
	n.wantAdopted(e, 7)
	if e.Seq <= done.Seq {
		t.Errorf("number %d comes after %d", e.Seq, done.Seq)
	}
	if out, _ := n.logged("short"); out != "last words\n" {
		t.Errorf("the log of the short one has %q", out)
	}
	for _, id := range []string{"count", "tty"} {
		if s := n.state(id); s.Phase != keeper.PhaseRunning || !s.Adopted || s.ConsoleLost {
			t.Errorf("%s is %+v", id, s)
		}
	}

	again := n.attach("count")
	io.WriteString(again.Stdin, "end\n")
	n.wantAdopted(n.exit("count", ""), 2)
	out, _ := n.logged("count")
	numbers(t, out, 30000)

	if err := n.c.Signal(n.ctx(), "count", "e", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	n.wantAdopted(n.exit("count", "e"), 137)

	tty := n.attach("tty")
	if tty.Console == nil {
		t.Fatal("the terminal was lost")
	}
	io.WriteString(tty.Stdin, "it\n")
	n.wantAdopted(n.exit("tty", ""), 6)
	if out, _ := n.logged("tty"); !strings.HasSuffix(out, "got it\r\n") {
		t.Errorf("the log of the terminal has %q", out)
	}

	if s := n.state("created"); s.Phase != keeper.PhaseCreated {
		t.Errorf("the created one is %+v", s)
	}
	if err := n.c.Start(n.ctx(), "created"); err != nil {
		t.Fatal(err)
	}
	n.wantAdopted(n.exit("created", ""), 8)
	if out, _ := n.logged("created"); out != "late\n" {
		t.Errorf("the log of the created one has %q", out)
	}
}

// pid reads a container's pid from its record; the keeper may be dead.
func (n *node) pid(id string) int {
	n.t.Helper()
	var rec record
	if err := readRecord(filepath.Join(n.dir, keeper.ContainersDir, id, recordName), &rec); err != nil {
		n.t.Fatal(err)
	}
	return rec.Process.Pid
}

func TestTheKeeperDiesTwice(t *testing.T) {
	n := newNode(t)
	n.run("c", `read x; exit 3`, func(r *keeper.CreateRequest) { r.Terminal, r.Stdin = true, true })
	n.crash()
	n.crash()
	a := n.attach("c")
	io.WriteString(a.Stdin, "end\n")
	n.wantAdopted(n.exit("c", ""), 3)
}

// An exit while neither a keeper nor a daemon holds anything is nobody's to tell.
func TestExitWithoutKeeperAndDaemon(t *testing.T) {
	n := newNode(t)
	n.run("gone", "exec sleep 1000")
	pid := n.pid("gone")
	n.kill()
	n.c.Close() // and with it the spares
	unix.Kill(pid, unix.SIGKILL)
	eventually(t, "the container to end", func() bool { return !alive(pid) })
	n.start()
	n.c = n.dial()
	if e := n.exit("gone", ""); !e.Unknown || e.Code != keeper.UnknownExitCode {
		t.Errorf("the exit is %+v, want unknown", e)
	}
}

func TestTheKeeperDiesWithinACreate(t *testing.T) {
	n := newNode(t)
	state, result := n.createHalf()
	data, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscanf(string(data), `{"init_process_pid":%d,`, &pid); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, keeper.ContainersDir, "half", "."+recordName+".1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.crash()
	if err := <-result; !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Create: %v", err)
	}
	eventually(t, "the init to be gone", func() bool { return !alive(pid) })
	wantOnly(t, filepath.Join(n.dir, keeper.ContainersDir, "half"), "config.json")
	wantOnly(t, filepath.Join(n.dir, keeper.LibcontainerDir))
}

func TestADamagedRecordIsSetAside(t *testing.T) {
	n := newNode(t)
	n.run("good", "exec sleep 1000")
	n.prepare("bad", bundle{})
	path := filepath.Join(n.dir, keeper.ContainersDir, "bad", recordName)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.crash()
	if s := n.state("good"); s.Phase != keeper.PhaseRunning {
		t.Errorf("the good one is %+v", s)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
	if !strings.Contains(n.log(), "damaged record") {
		t.Error("nothing is said of it")
	}
	os.Truncate(filepath.Join(n.dir, keeper.LogName), 0) // end fails for errors in it
}

// Keeper and daemon die at once, and with them all that they have of terminals and inputs that are to end: the holders have
// more. They end with the workload, or when the input does.
func TestKeeperAndDaemonDie(t *testing.T) {
	n := newNode(t)
	n.run("tty", `while read x; do echo got $x; [ $x = end ] && exit 6; done; exit 9`, func(r *keeper.CreateRequest) {
		r.Terminal, r.Stdin = true, true
	})
	n.run("once", `while read x; do echo got $x; done; exit 7`, func(r *keeper.CreateRequest) { r.Stdin, r.StdinOnce = true, true })
	say := func(id, word string) {
		t.Helper()
		a := n.attach(id)
		if _, err := io.WriteString(a.Stdin, word+"\n"); err != nil {
			t.Fatal(err)
		}
		eventually(t, id+" to answer "+word, func() bool {
			out, _ := n.logged(id)
			return strings.Contains(strings.ReplaceAll(out, "\r", ""), "got "+word+"\n")
		})
		a.Close()
	}
	holders := map[string]keeper.Process{}
	for _, id := range []string{"tty", "once"} {
		say(id, "first")
		var rec record
		if err := readRecord(filepath.Join(n.dir, keeper.ContainersDir, id, recordName), &rec); err != nil || rec.Holder.Pid == 0 {
			t.Fatalf("%s has the holder %+v, %v", id, rec.Holder, err)
		}
		holders[id] = rec.Holder
	}
	for range 2 { // also those whose keeper has adopted them
		n.kill()
		n.c.Close()
		n.start()
		n.c = n.dial()
		for _, id := range []string{"tty", "once"} {
			if s := n.state(id); s.Phase != keeper.PhaseRunning || s.ConsoleLost {
				t.Fatalf("%s is %+v", id, s)
			}
		}
	}
	say("tty", "second")
	say("once", "second")
	if err := n.c.CloseStdin(n.ctx(), "once"); err != nil {
		t.Fatal(err)
	}
	n.wantAdopted(n.exit("once", ""), 7)
	say("tty", "end")
	n.wantAdopted(n.exit("tty", ""), 6)
	for id, p := range holders {
		eventually(t, "the holder of "+id+" to end", func() bool {
			now, err := readProcess(p.Pid)
			return err != nil || now != p
		})
	}
}

func TestOneKeeper(t *testing.T) {
	n := newNode(t)
	n.start() // finds it answering
	c := n.dial()
	if c.Keeper() != n.c.Keeper() {
		t.Errorf("there are keepers %+v and %+v", c.Keeper(), n.c.Keeper())
	}
	err := Run(n.ctx(), Config{RunDir: n.dir, Launch: n.launch, Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, ErrLocked) {
		t.Errorf("a second keeper: %v", err)
	}
}

func TestShutdown(t *testing.T) {
	n := newNode(t)
	n.run("c", "exec sleep 1000")
	if err := n.c.Shutdown(n.ctx()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Shutdown with a living container: %v", err)
	}
	if err := unix.Kill(n.c.Keeper().Pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// It hears of it when it comes to that, and would end if the container had by then.
	eventually(t, "a word about the signal", func() bool { return strings.Contains(n.log(), "told to end, ignoring") })
	if s := n.state("c"); s.Phase != keeper.PhaseRunning {
		t.Errorf("after SIGTERM the container is %+v", s)
	}
	if err := n.c.Signal(n.ctx(), "c", "", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	e := n.exit("c", "")
	launchers := children(t, n.c.Keeper().Pid)
	if err := n.c.Shutdown(n.ctx()); err != nil {
		t.Fatal(err)
	}
	<-n.c.Done()
	eventually(t, "the launchers to be gone", func() bool {
		for _, pid := range launchers {
			if alive(pid) {
				return false
			}
		}
		return true
	})
	// What was not acknowledged is on disk for the next one.
	n.start()
	n.c = n.dial()
	if again := n.exit("c", ""); again.Seq != e.Seq || again.Code != 137 {
		t.Errorf("the exit came as %+v, then as %+v", e, again)
	}
}

// What removes the folder of a keeper that ends does not meet it again.
func TestAnEndingKeeperPutsNothingBack(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	k := &Keeper{runDir: filepath.Join(t.TempDir(), "removed")}
	cancel()
	if err := k.mend(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(k.runDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the run dir came back: %v", err)
	}
}

// What the keeper had of a line when it died is lost, and the rest of that line must not pass for one.
func TestTheKeeperDiesWithinALine(t *testing.T) {
	n := newNode(t)
	withInput := func(r *keeper.CreateRequest) { r.Stdin = true }
	n.run("short", `echo first; printf 'half a '; read x; echo line; echo whole`, withInput)
	n.run("long", `head -c 20000 /dev/zero | tr '\0' x; read x; echo end; echo whole`, withInput)
	n.run("none", `echo first; read x; echo second`, withInput)
	marked := func(id string) bool {
		info, err := os.Stat(filepath.Join(n.dir, keeper.ContainersDir, id, keeper.FileStdout))
		return err == nil && info.Mode()&os.ModeSticky != 0
	}
	eventually(t, "the beginnings to be read", func() bool {
		short, _ := n.logged("short")
		long, _ := n.logged("long")
		none, _ := n.logged("none")
		return short == "first\n" && len(long) == 16<<10 && none == "first\n" && marked("short") && marked("long") && !marked("none")
	})
	n.crash()
	n.crash() // the first one after it has not come to the end of the line either
	for id, want := range map[string]string{
		"short": "first\nwhole\n",
		"long":  strings.Repeat("x", 16<<10) + "\nwhole\n",
		"none":  "first\nsecond\n", // where nothing was in hand nothing is lost
	} {
		a := n.attach(id)
		io.WriteString(a.Stdin, "go\n")
		n.exit(id, "")
		if out, _ := n.logged(id); out != want {
			t.Errorf("the log of %s has %d bytes, ending in %.40q, want %d", id, len(out), out[max(0, len(out)-40):], len(want))
		}
	}
}

// Killed again and again while a container writes without a pause, the keeper takes at most 64 KiB with it each time;
// nothing is torn, doubled or out of order.
func TestTheKeeperDiesUnderLoad(t *testing.T) {
	n := newNode(t)
	writer := n.link("berth-writer")
	const kills, last = 20, 30_000
	if _, err := n.c.Create(n.ctx(), n.prepare("w", bundle{Args: []string{writer, strconv.Itoa(last)}})); err != nil {
		t.Fatal(err)
	}
	if err := n.c.Start(n.ctx(), "w"); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(n.dir, "w.log")
	for range kills {
		info, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "more to be logged", func() bool { now, _ := os.Stat(log); return now.Size() > info.Size()+1000 })
		n.crash()
	}
	n.wantAdopted(n.exit("w", ""), 17)
	out, _ := n.logged("w")
	before, gaps := 0, 0
	for line := range strings.Lines(out) {
		if line == "the end" {
			break
		}
		i, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil || len(line) != 100 || i <= before {
			t.Fatalf("line %q comes after %d", line, before)
		}
		if missing := (i - before - 1) * 100; missing > 0 {
			gaps++
			t.Logf("%d bytes are missing before line %d", missing, i)
			if missing > 64<<10 {
				t.Errorf("these are too many")
			}
		}
		before = i
	}
	if before != last || !strings.HasSuffix(out, "\nthe end") {
		t.Errorf("the log ends in %.200q", out[max(0, len(out)-200):])
	}
	if gaps > kills {
		t.Errorf("%d gaps after %d kills", gaps, kills)
	}
}
