package cgroups

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kill ends every process in the cgroup and below it, frozen ones and those that fork all the time included, and returns
// when none is left. A cgroup that is not there has none. If ctx ends first (30 seconds if it has no deadline) the error
// names the processes that stay, with the state and the kernel function that they wait in; they are killed nevertheless,
// and go when the kernel lets them.
func (g *Group) Kill(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	err := g.kill(ctx)
	if err != nil && ctx.Err() != nil {
		return g.stuck(ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", g, err)
	}
	return nil
}

func (g *Group) kill(ctx context.Context) error {
	if !g.host.Unified {
		return g.killV1(ctx)
	}
	dir := g.paths[""]
	for {
		// One write ends them all; who forks meanwhile is caught, and a frozen one need not be thawed, which would let it
		// run. It misses only who is moved in later, hence the loop.
		if err := writeFile(dir, "cgroup.kill", "1"); err != nil {
			if !exists(dir) {
				return nil
			}
			if err := g.killFrozen(dir); err != nil { // Linux before 5.14, or a threaded cgroup
				return err
			}
		}
		if empty, err := awaitEvent(ctx, dir, "populated", false); empty || err != nil {
			return err
		}
	}
}

// killFrozen kills one by one, holding them so that none forks away. On v2 a frozen process takes the signal.
func (g *Group) killFrozen(dir string) error {
	if err := writeFile(dir, "cgroup.freeze", "1"); err != nil && !gone(err) {
		return err
	}
	err := signalAll(g.dirs())
	if thawErr := writeFile(dir, "cgroup.freeze", "0"); err == nil && !gone(thawErr) {
		err = thawErr
	}
	return err
}

// killV1 asks again and again, since v1 does not tell when a cgroup is empty. Most cgroups are so after the first or
// second signal; freezing, which costs more, is for those that fork faster than they are read.
func (g *Group) killV1(ctx context.Context) error {
	var delay backoff
	for round := 0; ; round++ {
		pids, err := g.Pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		if unified, ok := g.paths[""]; ok {
			// The v2 tree of a hybrid node: if the container is there too, this ends it at once; if not, it does nothing.
			_ = writeFile(unified, "cgroup.kill", "1")
		}
		if round >= 2 {
			// The signal goes to a half-frozen cgroup as well.
			_ = writeFile(g.paths["freezer"], "freezer.state", frozenV1)
		}
		err = signalAll(g.dirs())
		thawTreeV1(g.paths["freezer"]) // a frozen process takes the signal when it is thawed
		if err != nil {
			return err
		}
		if err := pause(ctx, delay.next()); err != nil {
			return err
		}
	}
}

// signalAll kills the processes that are in the given cgroups and below. A number may have changed hands between the
// reading and the signal, so a process is held by a pidfd and then looked for once more.
func signalAll(dirs []string) error {
	for _, dir := range dirs {
		pids, err := allPids(dir)
		if err != nil && !gone(err) {
			return err
		}
		held := make(map[int]int, len(pids)) // pid → pidfd
		for _, pid := range pids {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				held[pid] = fd
			} // it ended, or we are out of descriptors: the next round has it
		}
		again, err := allPids(dir)
		for pid, fd := range held {
			if slices.Contains(again, pid) {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // ESRCH: it ended by itself
			}
			unix.Close(fd)
		}
		if err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// stuck says who is left after cause ended the wait.
func (g *Group) stuck(cause error) error {
	pids, err := g.Pids()
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", g, cause)
	}
	const shown = 8
	var who []string
	for _, pid := range pids[:min(shown, len(pids))] {
		who = append(who, describe(pid))
	}
	if len(pids) > shown {
		who = append(who, "…")
	}
	return fmt.Errorf("kill cgroup %s: %d processes do not end: %s: %w", g, len(pids), strings.Join(who, ", "), cause)
}

// describe returns "123 (sleep, D in folio_wait_bit)", as far as the kernel tells.
func describe(pid int) string {
	proc := "/proc/" + strconv.Itoa(pid) + "/"
	stat, err := os.ReadFile(proc + "stat")
	if err != nil {
		return strconv.Itoa(pid) + " (ended)"
	}
	open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	if open < 0 || end < open || len(stat) < end+3 {
		return strconv.Itoa(pid)
	}
	out := fmt.Sprintf("%d (%s, %c", pid, stat[open+1:end], stat[end+2])
	if wchan, err := os.ReadFile(proc + "wchan"); err == nil && len(wchan) > 0 && string(wchan) != "0" {
		out += " in " + string(wchan)
	}
	return out + ")"
}
