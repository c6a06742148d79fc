package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// describeMain is the answer of this binary to a keeper that asks what it is. What the folder that it lies in is called says
// how it is wrong.
func describeMain(what Description) int {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 1
	}
	switch filepath.Base(filepath.Dir(exe)) {
	case "other-state":
		what.Handovers = keeper.Range{Oldest: handoverVersion + 1, Newest: handoverVersion + 3}
	case "other-protocol":
		what.Protocols = keeper.Range{Oldest: keeper.NewestProtocol + 1, Newest: keeper.NewestProtocol + 1}
	case "silent":
		return 0
	case "failing":
		json.NewEncoder(os.Stdout).Encode(what)
		return 3
	case "gone":
		// What is executed now and cannot be executed afterwards.
		if os.Chmod(exe, 0o600) != nil {
			return 1
		}
	}
	json.NewEncoder(os.Stdout).Encode(what)
	return 0
}

// writerMain writes numbered lines of 100 bytes, 1 MB a second, until it is told to end by a signal; then it ends with a line
// that has no end.
func writerMain() int {
	const batch = 50
	out := bufio.NewWriterSize(os.Stdout, batch*100)
	last, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return 1
	}
	for i := 1; i <= last; i++ {
		fmt.Fprintf(out, "%-99d\n", i)
		if i%batch == 0 {
			if out.Flush() != nil {
				return 1
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	out.WriteString("the end")
	out.Flush()
	return 17
}

// wantWritten checks that text is all that writerMain wrote.
func wantWritten(t *testing.T, text string, last int) {
	t.Helper()
	i := 0
	for line := range strings.Lines(text) {
		i++
		want := fmt.Sprintf("%-99d\n", i)
		if i == last+1 {
			want = "the end"
		}
		if line != want {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	if i != last+1 {
		t.Fatalf("there are %d lines, want %d", i, last+1)
	}
}

// link makes another name of the test binary, by which it plays a part.
func (n *node) link(name string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Symlink(n.launch, path); err != nil && !errors.Is(err, os.ErrExist) {
		n.t.Fatal(err)
	}
	return path
}

// copyBinary makes a keeper of the test binary that has a folder of its own.
func (n *node) copyBinary(name string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, name, "berth-keeper")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		n.t.Fatal(err)
	}
	data, err := os.ReadFile(n.launch)
	if err == nil {
		err = os.WriteFile(path, data, 0o700)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return path
}

func (n *node) replace(binary string) {
	n.t.Helper()
	build, err := n.c.Replace(n.ctx(), binary, n.launch)
	if err != nil {
		n.t.Fatalf("%v\n%s", err, n.log())
	}
	if build != binary {
		n.t.Fatalf("the answer comes from %s, want %s", build, binary)
	}
}

// build asks which keeper answers, without taking charge.
func (n *node) build() string {
	n.t.Helper()
	answer, _ := n.hello(`{"version":1,"speaks":{"oldest":1,"newest":2}}`)
	var hello keeper.Hello
	if err := json.Unmarshal(answer.Body, &hello); err != nil {
		n.t.Fatal(err)
	}
	return hello.Build
}

func TestReplace(t *testing.T) {
	n := newNode(t)
	newer := n.link("newer/berth-keeper")
	n.run("done", "exit 5")
	done := n.exit("done", "") // not acknowledged
	withInput := func(r *keeper.CreateRequest) { r.Stdin = true }
	n.create("half", `printf 'half a '; read x; echo line; exit 1`, withInput)
	half := n.attach("half")
	if err := n.c.Start(n.ctx(), "half"); err != nil {
		t.Fatal(err)
	}
	n.run("tty", `read x; echo got $x; exit 6`, func(r *keeper.CreateRequest) { r.Terminal, r.Stdin = true, true })
	n.create("created", "echo late; exit 8")
	n.run("rotated", `read x; echo after; exit 9`, withInput)
	if _, _, err := n.c.Exec(n.ctx(), execRequest("half", "e", "exec sleep 1000")); err != nil {
		t.Fatal(err)
	}
	tty, rotated := n.attach("tty"), n.attach("rotated")
	until(t, half, "half a ")
	// Renamed and not reopened yet: the next keeper goes on with the file, not with the name.
	log := filepath.Join(n.dir, "rotated.log")
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	before := n.c.Keeper()

	n.replace(newer)
	n.replace(n.binary)

	if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", before.Pid)); exe != n.launch {
		t.Errorf("the keeper executes %s", exe)
	}
	if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", before.Pid)); string(comm) != "berth-keeper\n" {
		t.Errorf("the keeper is called %q", comm)
	}
	other := n.dial()
	if other.Keeper() != before {
		t.Errorf("the keeper is process %+v, was %+v", other.Keeper(), before)
	}
	<-n.c.Relieved()
	other.Close()
	if err := n.c.TakeCharge(); err != nil {
		t.Fatal(err)
	}
	if again := n.exit("done", ""); again.Seq != done.Seq {
		t.Errorf("the exit of before came as %+v, was %+v", again, done)
	}

	for _, id := range []string{"half", "tty", "rotated"} {
		if s := n.state(id); s.Phase != keeper.PhaseRunning || s.Adopted || s.ConsoleLost {
			t.Errorf("%s is %+v", id, s)
		}
	}
	if err := n.c.Signal(n.ctx(), "half", "e", int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	n.wantCode(n.exit("half", "e"), 137)
	io.WriteString(half.Stdin, "go\n")
	n.wantCode(n.exit("half", ""), 1)
	if out, _ := rest(t, half); out != "line\n" {
		t.Errorf("the attached client got %q", out)
	}
	if out, _ := n.logged("half"); out != "half a line\n" {
		t.Errorf("the log has %q", out)
	}
	data, _ := os.ReadFile(filepath.Join(n.dir, "half.log"))
	if lines := strings.Count(string(data), "\n"); lines != 1 {
		t.Errorf("the line has become %d records: %s", lines, data)
	}

	io.WriteString(tty.Stdin, "it\n")
	n.wantCode(n.exit("tty", ""), 6)
	if out, _ := rest(t, tty); !strings.HasSuffix(out, "got it\r\n") {
		t.Errorf("the terminal showed %q", out)
	}
	io.WriteString(rotated.Stdin, "go\n")
	n.wantCode(n.exit("rotated", ""), 9)
	if data, _ := os.ReadFile(log + ".1"); !strings.HasSuffix(string(data), "after\n") {
		t.Errorf("the rotated log has %q", data)
	}
	if err := n.c.Start(n.ctx(), "created"); err != nil {
		t.Fatal(err)
	}
	n.wantCode(n.exit("created", ""), 8)
}

// What comes after a replacement is as it was before: nothing that the next keeper was given gets into a container, no
// signal is blocked there, and no descriptor stays open in the keeper.
func TestReplaceLeavesNothingBehind(t *testing.T) {
	n := newNode(t)
	n.run("c", "exec sleep 1000", func(r *keeper.CreateRequest) { r.Stdin = true })
	n.attach("c")
	n.replace(n.binary)
	pid := n.c.Keeper().Pid
	const launchers = 2 * (DefaultLaunchers + 1)
	before := descriptors(t, pid)
	for range 10 {
		n.replace(n.binary)
	}
	eventually(t, "the descriptors to be as many", func() bool { return descriptors(t, pid) <= before+launchers })
	old, fresh := n.state("c").Process.Pid, n.run("after", "exec sleep 1000").Pid
	eventually(t, "the workload to have three descriptors", func() bool { return descriptors(t, fresh) == 3 })
	// glibc's posix_spawn, which make uses, leaves a signal of its own ignored; everybody below inherits that.
	self, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	ignored := regexp.MustCompile(`SigIgn:\t[0-9a-f]+`).FindString(string(self))
	for _, pid := range []int{old, fresh} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"SigBlk:\t0000000000000000", ignored} {
			if !strings.Contains(string(status), want) {
				t.Errorf("process %d (the older one is %d) has not %q:\n%s", pid, old, want, status)
			}
		}
	}
	// The keeper itself still hears what it is told.
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the signal to be heard", func() bool { return strings.Contains(n.log(), "told to end, ignoring") })
	n.crash()
	if s := n.state("c"); s.Phase != keeper.PhaseRunning || !s.Adopted {
		t.Errorf("after a crash the container is %+v", s)
	}
}

// What cannot take over is refused before anything has happened, and the keeper goes on as it was.
func TestReplaceRefuses(t *testing.T) {
	n := newNode(t)
	n.run("c", `read x; echo $x; exit 3`, func(r *keeper.CreateRequest) { r.Stdin = true })
	a := n.attach("c")
	script := filepath.Join(n.dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(n.dir, "plain")
	if err := os.WriteFile(plain, []byte("no program"), 0o700); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	limits := func() unix.Rlimit {
		if err := unix.Prlimit(n.c.Keeper().Pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
			t.Fatal(err)
		}
		return limit
	}
	before := limits()
	for _, tc := range []struct {
		binary, launch string
		class          error
		says           string
	}{
		{"berth-keeper", n.launch, errdefs.ErrInvalidArgument, "not absolute"},
		{n.binary, "berth-launch", errdefs.ErrInvalidArgument, "not absolute"},
		{"/nowhere/berth-keeper", n.launch, errdefs.ErrFailedPrecondition, "no such file"},
		{n.dir, n.launch, errdefs.ErrFailedPrecondition, "permission denied"},
		{plain, n.launch, errdefs.ErrFailedPrecondition, "exec format error"},
		{script, n.launch, errdefs.ErrFailedPrecondition, "no keeper that can take over"},
		{"/bin/true", n.launch, errdefs.ErrFailedPrecondition, "no keeper that can take over"},
		{n.copyBinary("silent"), n.launch, errdefs.ErrFailedPrecondition, "no keeper that can take over"},
		{n.copyBinary("failing"), n.launch, errdefs.ErrFailedPrecondition, "exit status 3"},
		{n.copyBinary("other-state"), n.launch, errdefs.ErrFailedPrecondition, "takes over state of versions 2 to 4, not of 1"},
		{n.copyBinary("other-protocol"), n.launch, errdefs.ErrFailedPrecondition, "a daemon is connected that speaks 2"},
		{n.copyBinary("gone"), n.launch, nil, "permission denied"}, // it fails at the execve itself
	} {
		_, err := n.c.Replace(n.ctx(), tc.binary, tc.launch)
		if err == nil || (tc.class != nil && !errors.Is(err, tc.class)) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("replaced by %s: %v, want class %v and %q", tc.binary, err, tc.class, tc.says)
		}
		if got := n.build(); got != n.binary {
			t.Fatalf("after %s the keeper is %s", tc.binary, got)
		}
		if after := limits(); after != before {
			t.Errorf("after %s the limits are %+v, were %+v", tc.binary, after, before)
		}
	}
	n.run("more", "exit 4")
	n.wantCode(n.exit("more", ""), 4)
	io.WriteString(a.Stdin, "on\n")
	n.wantCode(n.exit("c", ""), 3)
	if out, _ := rest(t, a); out != "on\n" {
		t.Errorf("the attached client got %q", out)
	}
	n.replace(n.binary)                                  // and now it works
	os.Truncate(filepath.Join(n.dir, keeper.LogName), 0) // end fails for errors in it
}

// A launcher that is not there any more is no reason to stop making containers.
func TestReplaceWithoutALauncher(t *testing.T) {
	n := newNode(t)
	if _, err := n.c.Replace(n.ctx(), n.binary, "/nowhere/berth-launch"); err != nil {
		t.Fatal(err)
	}
	n.run("c", "exit 4")
	n.wantCode(n.exit("c", ""), 4)
	n.replace(n.binary)
	os.Truncate(filepath.Join(n.dir, keeper.LogName), 0) // end fails for errors in it
}

// A keeper that does not come to rest says so and goes on, and what was under way is done.
func TestReplaceWaitsForWhatIsUnderWay(t *testing.T) {
	n := newNode(t)
	n.run("c", "exec sleep 1000")
	ctx, cancel := context.WithCancel(n.ctx())
	defer cancel()
	hanging := make(chan error)
	req := n.prepare("hang", bundle{Do: "hang"})
	go func() {
		_, err := n.c.Create(ctx, req)
		hanging <- err
	}()
	state := filepath.Join(n.dir, keeper.LibcontainerDir, "hang")
	eventually(t, "the launcher to begin", func() bool { _, err := os.Stat(state); return err == nil })
	var both [2]error
	var wg sync.WaitGroup
	for i := range both {
		wg.Go(func() { _, both[i] = n.c.Replace(n.ctx(), n.binary, n.launch) })
	}
	wg.Wait()
	for _, err := range both {
		if !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("replaced while a container is being made: %v", err)
		}
	}
	n.run("more", "exit 4")
	n.wantCode(n.exit("more", ""), 4)
	cancel()
	if err := <-hanging; !errors.Is(err, context.Canceled) {
		t.Errorf("Create: %v", err)
	}
	n.replace(n.binary)
	os.Truncate(filepath.Join(n.dir, keeper.LogName), 0) // end fails for errors in it
}

// A client that reads slowly, of a container that is forgotten, gets all that it had coming.
func TestReplaceKeepsWhatASlowClientHasComing(t *testing.T) {
	n := newNode(t)
	const size = 3_000_000
	n.create("c", fmt.Sprintf(`printf '%%0%dd' 1; exit 2`, size))
	a := n.attach("c")
	if err := n.c.Start(n.ctx(), "c"); err != nil {
		t.Fatal(err)
	}
	n.c.Ack(n.exit("c", "").Seq)
	if err := n.c.Delete(n.ctx(), "c"); err != nil {
		t.Fatal(err)
	}
	n.replace(n.binary)
	n.run("c", "exec sleep 1000") // another one with the same name
	n.replace(n.binary)
	if out, _ := rest(t, a); len(out) != size || strings.Trim(out, "0") != "1" {
		t.Errorf("the client got %d bytes, want %d", len(out), size)
	}
}

// Under load, nothing is lost: no byte of any log or attachment, no exit of a container or an exec, no request.
func TestReplaceUnderLoad(t *testing.T) {
	n := newNode(t)
	binaries := []string{n.link("newer/berth-keeper"), n.binary}
	writer := n.link("berth-writer")
	replacements, lines := 100, 15_000
	if more, err := strconv.Atoi(os.Getenv("KEEPER_REPLACEMENTS")); err == nil {
		replacements, lines = more, more*150
	}
	daemon := &loadDaemon{n: n, t: t, exits: make(map[string]chan keeper.Exit)}
	go daemon.follow()

	var over atomic.Bool
	var load sync.WaitGroup
	for i := range 3 {
		load.Go(func() { daemon.write(fmt.Sprintf("writer-%d", i), writer, lines) })
	}
	for i := range 2 {
		load.Go(func() {
			for j := 0; !over.Load(); j++ {
				daemon.live(fmt.Sprintf("short-%d-%d", i, j), (i*50+j)%200)
			}
		})
	}
	n.run("host", "exec sleep 1000")
	for i := range 2 {
		load.Go(func() {
			for j := 0; !over.Load(); j++ {
				daemon.exec("host", fmt.Sprintf("exec-%d-%d", i, j), (i*50+j)%200)
			}
		})
	}
	done := 0
	for ; done < replacements && !t.Failed(); done++ {
		n.replace(binaries[done%2])
	}
	over.Store(true)
	load.Wait()
	t.Logf("%d replacements, %d short containers, %d execs", done, daemon.lives.Load(), daemon.execs.Load())
	if daemon.lives.Load() < 10 || daemon.execs.Load() < 10 {
		t.Error("there was no load")
	}
}

// loadDaemon is a daemon that does much at once.
type loadDaemon struct {
	n            *node
	t            *testing.T
	lives, execs atomic.Int64

	mu    sync.Mutex
	exits map[string]chan keeper.Exit
	last  uint64
}

// follow hands out exits, each of which comes once and in order.
func (d *loadDaemon) follow() {
	for e := range d.n.c.Exits() {
		d.mu.Lock()
		if e.Seq <= d.last {
			d.t.Errorf("exit %+v comes after number %d", e, d.last)
		}
		d.last = e.Seq
		d.mu.Unlock()
		d.exitOf(e.ID + "/" + e.ExecID) <- e
		d.n.c.Ack(e.Seq)
	}
}

func (d *loadDaemon) exitOf(name string) chan keeper.Exit {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.exits[name] == nil {
		d.exits[name] = make(chan keeper.Exit, 1)
	}
	return d.exits[name]
}

func (d *loadDaemon) want(id, execID string, code int) {
	select {
	case e := <-d.exitOf(id + "/" + execID):
		if e.Code != code || e.Unknown {
			d.t.Errorf("the exit is %+v, want code %d", e, code)
		}
	case <-time.After(time.Minute):
		d.t.Errorf("no exit of %s %q", id, execID)
	}
}

// write runs a container that writes numbered lines at 1 MB/s, and reads it by an attachment too.
func (d *loadDaemon) write(id, writer string, lines int) {
	n := d.n
	ctx := context.Background()
	if _, err := n.c.Create(ctx, n.prepare(id, bundle{Args: []string{writer, strconv.Itoa(lines)}})); err != nil {
		d.t.Error(err)
		return
	}
	a, err := n.c.Attach(ctx, id)
	if err != nil {
		d.t.Error(err)
		return
	}
	defer a.Close()
	if err := n.c.Start(ctx, id); err != nil {
		d.t.Error(err)
		return
	}
	var seen strings.Builder
	for {
		_, data, err := a.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			d.t.Error(err)
			return
		}
		seen.Write(data)
	}
	d.want(id, "", 17)
	wantWritten(d.t, seen.String(), lines)
	out, _ := n.logged(id)
	wantWritten(d.t, out, lines)
}

// live takes a container through its life.
func (d *loadDaemon) live(id string, code int) {
	n := d.n
	ctx := context.Background()
	req := n.prepare(id, sh(fmt.Sprintf("echo out; echo err >&2; exit %d", code)))
	_, err := n.c.Create(ctx, req)
	if err == nil {
		err = n.c.Start(ctx, id)
	}
	if err != nil {
		d.t.Error(err)
		return
	}
	d.want(id, "", code)
	if out, errs := n.logged(id); out != "out\n" || errs != "err\n" {
		d.t.Errorf("%s has logged %q and %q", id, out, errs)
	}
	if err := n.c.Delete(ctx, id); err != nil {
		d.t.Error(err)
	}
	d.lives.Add(1)
}

func (d *loadDaemon) exec(id, execID string, code int) {
	r, w, err := os.Pipe()
	if err != nil {
		d.t.Error(err)
		return
	}
	defer r.Close()
	req := execRequest(id, execID, fmt.Sprintf("echo out; exit %d", code))
	req.Stdout = w
	_, _, err = d.n.c.Exec(context.Background(), req)
	w.Close()
	if err != nil {
		d.t.Error(err)
		return
	}
	if out, _ := io.ReadAll(r); string(out) != "out\n" {
		d.t.Errorf("exec %s has printed %q", execID, out)
	}
	d.want(id, execID, code)
	d.execs.Add(1)
}
