package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/runtime/keeper"
)

// FilterArg as the first argument makes berth-launch call LoadFilter and nothing else.
const FilterArg = "load-filter"

// compileFilter returns the very filter that libcontainer loads for a profile, and the flags with which it does: a child
// of ours has libcontainer load it, and is looked at while it does.
func compileFilter(job *keeper.Job) (*keeper.Filter, error) {
	var profile specs.LinuxSeccomp
	if err := json.Unmarshal(job.Seccomp, &profile); err != nil {
		return nil, argumentError("decode the seccomp profile: %w", err)
	}
	config, err := specconv.SetupSeccomp(&profile)
	if err != nil {
		return nil, argumentError("seccomp profile: %w", err)
	}
	if config == nil {
		return nil, argumentError("the seccomp profile is empty")
	}
	return traceFilter(config)
}

// traceFilter is compileFilter for a profile in libcontainer's form.
func traceFilter(config *configs.Seccomp) (*keeper.Filter, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	go func() {
		defer w.Close()
		_ = json.NewEncoder(w).Encode(config) // a child that does not read it says why
	}()
	return trace(r)
}

// LoadFilter loads the filter of the configs.Seccomp on stdin into its thread, the main one, and ends the process. It stops
// before, so that whoever traces it need not see the start of a Go program.
func LoadFilter() {
	var config configs.Seccomp
	err := json.NewDecoder(os.Stdin).Decode(&config)
	if err == nil {
		err = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
	}
	if err == nil {
		_, err = seccomp.InitSeccomp(&config)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1) // it is killed when it has loaded the filter
}

// trace runs LoadFilter in a child up to the moment when the kernel has taken the filter.
func trace(config *os.File) (*keeper.Filter, error) {
	runtime.LockOSThread() // only the thread that started the child may trace it
	defer runtime.UnlockOSThread()
	complaint := &logBuffer{}
	cmd := exec.Command("/proc/self/exe", FilterArg)
	cmd.Stdin = config
	cmd.Stderr = complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t := &tracee{pid: cmd.Process.Pid}
	filter, err := t.loaded()
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // says that it was killed, or what complaint has
	if err != nil {
		return nil, &classified{failureOf(err), errors.New(complaint.explain(err))}
	}
	return filter, nil
}

// tracee is a child that this thread traces.
type tracee struct{ pid int }

// loaded lets the child go on until it has loaded a filter.
func (t *tracee) loaded() (*keeper.Filter, error) {
	if _, err := t.wait(); err != nil { // execve
		return nil, err
	}
	if err := unix.PtraceSetOptions(t.pid, unix.PTRACE_O_EXITKILL|unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return nil, os.NewSyscallError("ptrace", err)
	}
	if err := t.goOnToStop(); err != nil {
		return nil, err
	}
	var call syscallInfo
	for {
		if err := unix.PtraceSyscall(t.pid, 0); err != nil {
			return nil, os.NewSyscallError("ptrace", err)
		}
		status, err := t.wait()
		if err != nil {
			return nil, err
		}
		if status.StopSignal() != unix.SIGTRAP|0x80 {
			continue // a signal that the Go runtime sends itself; it is of no use to a process that ends soon
		}
		info, err := t.syscallInfo()
		if err != nil {
			return nil, err
		}
		if info.op == unix.PTRACE_SYSCALL_INFO_ENTRY {
			call = info
			continue
		}
		flags, isLoad := call.loads()
		if isLoad && info.result() == 0 {
			code, err := t.filter()
			return &keeper.Filter{Code: code, Flags: flags}, err
		}
	}
}

// goOnToStop lets the child go on until it stops itself.
func (t *tracee) goOnToStop() error {
	for {
		if err := unix.PtraceCont(t.pid, 0); err != nil {
			return os.NewSyscallError("ptrace", err)
		}
		status, err := t.wait()
		if err != nil || status.StopSignal() == unix.SIGSTOP {
			return err
		}
	}
}

var errTraceeEnded = errors.New("libcontainer did not load the filter")

func (t *tracee) wait() (unix.WaitStatus, error) {
	var status unix.WaitStatus
	_, err := unix.Wait4(t.pid, &status, unix.WALL, nil)
	for err == unix.EINTR {
		_, err = unix.Wait4(t.pid, &status, unix.WALL, nil)
	}
	if err != nil {
		return 0, os.NewSyscallError("wait4", err)
	}
	if !status.Stopped() {
		return 0, errTraceeEnded
	}
	return status, nil
}

// syscallInfo is struct ptrace_syscall_info: at the entry of a call data has its number and arguments, at the exit its
// result.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	_    uint32
	_, _ uint64
	data [7]uint64
	_    [2]uint64
}

func (i *syscallInfo) result() int64 { return int64(i.data[0]) }

// loads says whether the call, seen at its entry, loads a filter, and with which flags.
func (i *syscallInfo) loads() (flags uint32, ok bool) {
	nr, args := i.data[0], i.data[1:]
	switch {
	case nr == unix.SYS_SECCOMP && args[0] == unix.SECCOMP_SET_MODE_FILTER:
		// One thread needs no synchronizing; a listener has no place here, see spec.Enter.
		return uint32(args[1]) &^ (unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH), true
	case nr == unix.SYS_PRCTL && args[0] == unix.PR_SET_SECCOMP && args[1] == unix.SECCOMP_MODE_FILTER:
		return 0, true
	default:
		return 0, false
	}
}

func (t *tracee) syscallInfo() (info syscallInfo, err error) {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(t.pid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return info, unsupportedError("look at a system call: %w", errno)
	}
	return info, nil
}

// filter returns the code of the filter that was loaded last: the one with the highest number.
func (t *tracee) filter() ([]byte, error) {
	var code []byte
	for n := uintptr(0); ; n++ {
		length, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(t.pid), n, 0, 0, 0)
		if errno == unix.ENOENT && code != nil {
			return code, nil
		}
		if errno != 0 {
			return nil, unsupportedError("read the filter: %w", errno)
		}
		code = make([]byte, length*unsafe.Sizeof(unix.SockFilter{}))
		_, _, errno = unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(t.pid), n, uintptr(unsafe.Pointer(&code[0])), 0, 0)
		if errno != 0 {
			return nil, unsupportedError("read the filter: %w", errno)
		}
	}
}
