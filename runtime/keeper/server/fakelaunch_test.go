package server

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/berth-node/berth/internal/atomicfile"
	"github.com/berth-node/berth/internal/startfifo"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// launchMain is a launcher without libcontainer: a "container" is a process that waits at an exec FIFO.
func launchMain() int {
	unix.CloseOnExec(3)
	unix.CloseOnExec(4) // the host's mounts
	f := os.NewFile(3, "keeper")
	nc, err := net.FileConn(f)
	if err != nil {
		return 1
	}
	f.Close()
	conn := nc.(*net.UnixConn)
	var job keeper.Job
	files, err := wire.Read(conn, &job)
	if err != nil {
		return 0 // the keeper does not need us
	}
	result, pidfd, err := doJob(job, files)
	wire.CloseAll(files)
	if err != nil {
		result = keeper.JobResult{Error: err.Error(), Failure: keeper.FailureSetup}
	}
	var back []*os.File
	if pidfd >= 0 {
		back = append(back, os.NewFile(uintptr(pidfd), "pidfd"))
	}
	if err := wire.Write(conn, result, back...); err != nil {
		return 1
	}
	return 0
}

func doJob(job keeper.Job, files []*os.File) (keeper.JobResult, int, error) {
	state := filepath.Join(job.Root, job.ID)
	switch job.Kind {
	case keeper.JobCreate:
		return fakeCreate(job, state, files)
	case keeper.JobExec:
		var p struct{ Args []string }
		if err := json.Unmarshal(job.Process, &p); err != nil {
			return keeper.JobResult{}, -1, err
		}
		return spawnFake(p.Args[0], p.Args, job.Terminal, files)
	case keeper.JobDestroy:
		return keeper.JobResult{}, -1, os.WriteFile(filepath.Join(filepath.Dir(job.Root), job.ID+".destroyed"), nil, 0o600)
	case keeper.JobCheckpoint:
		return keeper.JobResult{Error: "no criu here", Failure: keeper.FailureUnsupported}, -1, nil
	}
	return keeper.JobResult{}, -1, fmt.Errorf("job %q", job.Kind)
}

func fakeCreate(job keeper.Job, state string, files []*os.File) (keeper.JobResult, int, error) {
	var b bundle
	data, err := os.ReadFile(filepath.Join(job.Bundle, "config.json"))
	if err == nil {
		err = json.Unmarshal(data, &b)
	}
	if err == nil {
		err = os.MkdirAll(state, 0o711)
	}
	if err != nil {
		return keeper.JobResult{}, -1, err
	}
	switch b.Do {
	case "fail":
		return keeper.JobResult{Error: "as told", Failure: b.Failure}, -1, nil
	case "die":
		fmt.Fprintln(os.Stderr, "fatal error: as told")
		os.Exit(2)
	case "hang":
		select {}
	}
	fifo := filepath.Join(state, "exec.fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return keeper.JobResult{}, -1, err
	}
	result, pidfd, err := spawnFake("/proc/self/exe", append([]string{"berth-init", fifo}, b.Args...), job.Terminal, files)
	if err == nil {
		awaitBlocked(fifo)
		text := fmt.Appendf(nil, `{"init_process_pid":%d,"init_process_start":%d}`, result.Pid, result.StartTime)
		err = atomicfile.Write(filepath.Join(state, "state.json"), text, 0o600) // whole or not at all, as libcontainer does
	}
	if b.Do == "hang-with-init" {
		select {}
	}
	return result, pidfd, err
}

// awaitBlocked waits until the init at the FIFO has seen to it that it will wait.
func awaitBlocked(fifo string) {
	for {
		if blocked, err := isBlocked(fifo); blocked || err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// isBlocked says whether the init at the FIFO waits, or would.
func isBlocked(fifo string) (bool, error) {
	f, err := startfifo.Open(fifo)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return startfifo.Blocked(f.Fd())
}

// spawnFake starts a process and does not wait for it.
func spawnFake(path string, args []string, terminal bool, files []*os.File) (keeper.JobResult, int, error) {
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: "/",
		Env: []string{"PATH=/usr/bin:/bin"},
		Sys: &syscall.SysProcAttr{PidFD: &pidfd, Setsid: true},
	}
	if terminal {
		tty, err := sendTerminal(files[0])
		if err != nil {
			return keeper.JobResult{}, -1, err
		}
		defer tty.Close()
		attr.Files = []uintptr{tty.Fd(), tty.Fd(), tty.Fd()}
		attr.Sys.Setctty = true
	} else {
		attr.Files = []uintptr{files[0].Fd(), files[1].Fd(), files[2].Fd()}
	}
	pid, _, err := syscall.StartProcess(path, args, attr)
	if err != nil {
		return keeper.JobResult{}, -1, err
	}
	p, err := readProcess(pid)
	return keeper.JobResult{Pid: pid, StartTime: p.StartTime}, pidfd, err
}

// sendTerminal makes a terminal and sends its master end as libcontainer does.
func sendTerminal(socket *os.File) (*os.File, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	if err := unix.Sendmsg(int(socket.Fd()), []byte(name), unix.UnixRights(int(master.Fd())), nil, 0); err != nil {
		return nil, err
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// initMain waits at the FIFO as libcontainer's init, and becomes the workload.
func initMain() int {
	if err := startfifo.Block(os.Args[1]); err != nil {
		return 92
	}
	f, err := os.OpenFile(os.Args[1], os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("0")
		f.Close()
	}
	if err != nil {
		return 90
	}
	args := os.Args[2:]
	if strings.HasPrefix(args[0], "/") {
		syscall.Exec(args[0], args, []string{"PATH=/usr/bin:/bin"})
	}
	return 91
}
