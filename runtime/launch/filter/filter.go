// Package filter spares libcontainer's init the compilation of seccomp filters, which takes longer than all the rest that
// init does.
//
// A filter is compiled once per profile, in a launcher, by libcontainer's own code, and kept in a Cache. A launcher hands the
// program to its init as descriptor 3 (Seal), and init takes it from there before libcontainer runs (Receive):
//
//	launcher                              libcontainer's init
//	Cache.Program: found, or Compile
//	Seal, as the first of ExtraFiles  --> Receive
//	                                      seccomp.InitSeccomp, as ever: but libseccomp takes no rules (wrap.c)
//	                                      and exports this program
//
// What surrounds the compilation stays libcontainer's: the order of the steps, flags, no_new_privs, its own instructions in
// front of the program, listeners, errors. An init that gets no program compiles for itself. An init of our own gets what
// libcontainer's loads in the end, instructions and flags (Loaded), which somebody has seen before and kept (Learn).
//
// Only berth-launch links it, which makes init and launcher one binary with one libseccomp.
package filter

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/atomicfile"
)

const (
	// instruction is the size of one instruction of a program in bytes (struct sock_filter), and maxProgram of the longest
	// one that the kernel takes (BPF_MAXINSNS).
	instruction = 8
	maxProgram  = 4096 * instruction
	// maxEntries bounds a cache. A node sees a profile per set of capabilities and per Localhost profile, with two entries for each.
	maxEntries = 128
)

// Worthwhile tells whether a filter is to come from a cache: if there is one, and if it has rules to compile.
func Worthwhile(config *configs.Seccomp) bool {
	return config != nil && len(config.Syscalls) > 0
}

// A Cache keeps compiled filters in a folder of its own, which is made when it is needed and in which nobody but root may
// write. An entry is named by the hash of everything that the program depends on, and holds the hash of itself. What is
// damaged, or not root's alone, counts as not there.
type Cache struct{ Dir string }

// Program returns the compiled filter of config, and what an init that is handed it needs of config: see brief. One that was not
// there is compiled, and kept if that works: a cache that cannot be written costs time, not containers.
func (c Cache) Program(config *configs.Seccomp) (program []byte, rest *configs.Seccomp, err error) {
	key, err := keyOf(config)
	if err != nil {
		return nil, nil, err
	}
	path := filepath.Join(c.Dir, key)
	if program, err = read(path); err != nil {
		if program, err = Compile(config); err != nil {
			return nil, nil, err
		}
		if err := check(program); err != nil {
			return nil, nil, err
		}
		_ = c.keep(path, program)
	}
	return program, briefOf(key, config), nil
}

func briefOf(key string, config *configs.Seccomp) *configs.Seccomp {
	if briefs[key] == nil {
		briefs[key] = brief(config)
	}
	return briefs[key]
}

// briefs are those of this process, which handles few profiles, one at a time, and then ends.
var briefs = map[string]*configs.Seccomp{}

// brief leaves out the rules of config, some 400 as a rule, which the launcher would write and init would read for nothing: the
// program has them. What remains are those by which libcontainer tells a system call that is newer than the profile, the
// highest number of each architecture.
//
// A profile that allows what it has no rule for stays whole, as it is on record with libcontainer: a launcher of before, which knows
// of none that is not, would let an exec do what the profile refuses. So does one whose rules have listeners.
func brief(config *configs.Seccomp) *configs.Seccomp {
	switch config.DefaultAction {
	case configs.Errno, configs.Kill, configs.KillThread, configs.KillProcess, configs.Trap:
	default:
		return config
	}
	notifies := func(call *configs.Syscall) bool { return call == nil || call.Action == configs.Notify }
	if slices.ContainsFunc(config.Syscalls, notifies) {
		return config
	}
	calls, err := highest(config)
	if err != nil {
		return config
	}
	short := *config
	short.Syscalls = calls
	return &short
}

// keyOf hashes what a program depends on: the profile with its architectures, this machine's architecture, the kernel, which
// libseccomp asks for what it knows, and the two libraries.
func keyOf(config *configs.Seccomp) (string, error) {
	profile, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%s\n", surroundings())
	hash.Write(profile)
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// surroundings is the part of a key that is the same in all keys of this process.
var surroundings = sync.OnceValue(func() string {
	var kernel unix.Utsname
	_ = unix.Uname(&kernel)
	versions := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/opencontainers/runc" || m.Path == "github.com/seccomp/libseccomp-golang" {
				versions += fmt.Sprint(m.Path, m.Version, m.Sum)
			}
		}
	}
	return fmt.Sprint(runtime.GOARCH, " ", unix.ByteSliceToString(kernel.Release[:]), " ", libraryVersion(), " ", versions)
})

// Warm does what the first key costs.
func Warm() { surroundings() }

// An entry is the hash of its name and its content, and the content.

func seal(name string, content []byte) []byte {
	hash := sha256.New()
	hash.Write([]byte(name))
	hash.Write(content)
	return hash.Sum(nil)
}

var errDamaged = errors.New("damaged")

func read(path string) ([]byte, error) {
	program, err := readEntry(path)
	if err != nil {
		return nil, err
	}
	return program, check(program)
}

// readEntry returns the content of an entry.
func readEntry(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o022 != 0 || st.Uid != uint32(os.Geteuid()) ||
		st.Size <= sha256.Size || st.Size > sha256.Size+instruction+maxProgram {
		return nil, errDamaged
	}
	data := make([]byte, st.Size)
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, err
	}
	sum, content := data[:sha256.Size], data[sha256.Size:]
	if !slices.Equal(sum, seal(filepath.Base(path), content)) {
		return nil, errDamaged
	}
	return content, nil
}

// check refuses what can be no program.
func check(program []byte) error {
	if len(program) == 0 || len(program) > maxProgram || len(program)%instruction != 0 {
		return fmt.Errorf("%d bytes are no seccomp program", len(program))
	}
	return nil
}

func (c Cache) keep(path string, content []byte) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	if err := c.prune(); err != nil {
		return err
	}
	return atomicfile.Write(path, append(seal(filepath.Base(path), content), content...), 0o600)
}

// prune makes room for one more entry: the oldest go, with what an interrupted write left.
func (c Cache) prune() error {
	entries, err := os.ReadDir(c.Dir)
	if err != nil || len(entries) < maxEntries {
		return err
	}
	age := func(e os.DirEntry) int64 {
		info, err := e.Info()
		if err != nil {
			return 0 // it has gone
		}
		return info.ModTime().UnixNano()
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return int(min(max(age(a)-age(b), -1), 1)) })
	for _, e := range entries[:len(entries)-maxEntries+1] {
		if err := os.RemoveAll(filepath.Join(c.Dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
