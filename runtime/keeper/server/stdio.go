package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/wire"
	"github.com/berth-node/berth/runtime/keeper"
	"golang.org/x/sys/unix"
)

// stdio are the keeper's ends of a workload's input and output. Each is nil where there is none.
type stdio struct {
	// stdin is a write end that is never written: it keeps the workload from seeing the end of its input while no
	// client is attached.
	stdin *os.File
	// stdout and stderr are read ends, non-blocking.
	stdout, stderr *os.File
	// console is the master end of the terminal, non-blocking.
	console *os.File
}

// fifo is one of a container's FIFOs. Its mode lets the workload open it again as /dev/stdout or the like, whatever user
// it runs as and in whatever user namespace; nobody else gets to it, since the folders above are closed to others.
type fifo struct {
	name string
	fd   int // the workload's
	mode uint32
}

var (
	stdinFIFO  = fifo{keeper.FileStdin, unix.Stdin, 0o644}
	stdoutFIFO = fifo{keeper.FileStdout, unix.Stdout, 0o622}
	stderrFIFO = fifo{keeper.FileStderr, unix.Stderr, 0o622}
)

// makeFIFOs makes what a container without a terminal needs in dir, and opens both sides: the keeper's, and the
// workload's stdin, stdout and stderr in this order, for the caller to close.
func makeFIFOs(dir string, stdin, once bool) (ours stdio, theirs []*os.File, err error) {
	defer func() {
		if err != nil {
			ours.close()
			wire.CloseAll(theirs)
		}
	}()
	var in *os.File
	if stdin {
		in, ours.stdin, err = makeInput(dir, once)
	} else {
		in, err = openFile(os.DevNull, unix.O_RDONLY)
	}
	if err != nil {
		return ours, theirs, err
	}
	theirs = append(theirs, in)
	for _, out := range []struct {
		fifo fifo
		ours **os.File
	}{{stdoutFIFO, &ours.stdout}, {stderrFIFO, &ours.stderr}} {
		path := filepath.Join(dir, out.fifo.name)
		if err := out.fifo.make(dir); err != nil {
			return ours, theirs, err
		}
		if *out.ours, err = openFile(path, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
			return ours, theirs, err
		}
		// Read-write, so that the workload itself is a reader: if the keeper dies, a write waits for the next keeper and
		// is no SIGPIPE, and the kernel keeps what is in the pipe.
		end, err := openFile(path, unix.O_RDWR)
		if err != nil {
			return ours, theirs, err
		}
		theirs = append(theirs, end)
	}
	return ours, theirs, nil
}

// makeInput returns the workload's end and the keeper's. The workload's is read-write, so that it does not see the end of
// its input when the keeper and all daemons die at once; unless its input is to end once, which it then has to see.
func makeInput(dir string, once bool) (theirs, ours *os.File, err error) {
	if err := stdinFIFO.make(dir); err != nil {
		return nil, nil, err
	}
	path := filepath.Join(dir, stdinFIFO.name)
	// Opening one side waits for the other, but for a read-write one.
	both, err := openFile(path, unix.O_RDWR)
	if err != nil {
		return nil, nil, err
	}
	defer both.Close()
	flags := unix.O_RDWR
	if once {
		flags = unix.O_RDONLY
	}
	if theirs, err = openFile(path, flags); err != nil {
		return nil, nil, err
	}
	if ours, err = openFile(path, unix.O_WRONLY|unix.O_NONBLOCK); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return theirs, ours, nil
}

// reopenFIFOs opens the keeper's ends again, for a process that a keeper before has started. What is not there any more
// stays nil: the container will end without it.
func reopenFIFOs(dir string, pid int, stdin bool) stdio {
	var s stdio
	s.stdout, _ = stdoutFIFO.reopen(dir, pid, unix.O_RDONLY)
	s.stderr, _ = stderrFIFO.reopen(dir, pid, unix.O_RDONLY)
	if stdin {
		s.stdin, _ = stdinFIFO.reopen(dir, pid, unix.O_WRONLY)
	}
	return s
}

// reopen opens one side of the FIFO, by its name or, if somebody has emptied the run dir, through the workload, which has the
// other side open.
func (f fifo) reopen(dir string, pid, side int) (*os.File, error) {
	path := filepath.Join(dir, f.name)
	file, err := openFile(path, side|unix.O_NONBLOCK)
	if !errors.Is(err, os.ErrNotExist) {
		return file, err
	}
	through := fmt.Sprintf("/proc/%d/fd/%d", pid, f.fd)
	if named, lerr := os.Readlink(through); lerr != nil || named != path+" (deleted)" {
		return nil, err // the workload has put something else in its place
	}
	return openThrough(through, side)
}

// openThrough opens the FIFO once more that a link in /proc leads to, whether it has a name or not.
func openThrough(link string, side int) (*os.File, error) {
	info, err := os.Stat(link)
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeNamedPipe == 0 {
		return nil, fmt.Errorf("%s is no FIFO: %w", link, errdefs.ErrFailedPrecondition)
	}
	fd, err := unix.Open(link, side|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: link, Err: err}
	}
	return os.NewFile(uintptr(fd), link), nil
}

// openInput opens one more write end of a container's input, for a client. It is nil if nobody reads it any more.
func (s *stdio) openInput() (f *os.File, err error) {
	if s.stdin == nil {
		return nil, nil
	}
	err = control(s.stdin, func(fd int) error {
		f, err = openThrough(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY)
		return err
	})
	if errors.Is(err, unix.ENXIO) {
		return nil, nil
	}
	return f, err
}

func (f fifo) make(dir string) error {
	path := filepath.Join(dir, f.name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	return os.Chmod(path, os.FileMode(f.mode)) // past the umask
}

// openFile opens path with exactly these flags: os.OpenFile would make the descriptor non-blocking, and the workload is
// to get one that is not.
func openFile(path string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// files lists the open ends by name.
func (s *stdio) files() map[string]*os.File {
	files := make(map[string]*os.File)
	for name, f := range map[string]*os.File{
		keeper.FileStdin: s.stdin, keeper.FileStdout: s.stdout, keeper.FileStderr: s.stderr, keeper.FileConsole: s.console,
	} {
		if f != nil {
			files[name] = f
		}
	}
	return files
}

func (s *stdio) close() {
	wire.CloseAll([]*os.File{s.stdin, s.stdout, s.stderr, s.console})
	*s = stdio{}
}

// receiveConsole takes the master end of a terminal from libcontainer's init, which sends it as a message of its own
// form: the name of the terminal, and one descriptor. It was sent before the launcher answered.
func receiveConsole(conn *net.UnixConn) (*os.File, error) {
	name := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil || len(fds) == 0 {
			continue
		}
		if err := unix.SetNonblock(fds[0], true); err != nil {
			unix.Close(fds[0])
			return nil, fmt.Errorf("receive the terminal: %w", err)
		}
		return os.NewFile(uintptr(fds[0]), "console"), nil
	}
	return nil, errors.New("receive the terminal: no descriptor came")
}
