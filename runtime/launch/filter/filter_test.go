//go:build cgo && seccomp

package filter

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-node/berth/internal/memfile"
)

// refusing refuses these system calls and allows all others.
func refusing(calls ...string) *configs.Seccomp {
	s := &configs.Seccomp{DefaultAction: configs.Allow}
	for _, name := range calls {
		s.Syscalls = append(s.Syscalls, &configs.Syscall{Name: name, Action: configs.Errno})
	}
	return s
}

func program(t *testing.T, c Cache, config *configs.Seccomp) []byte {
	t.Helper()
	p, _, err := c.Program(config)
	if err != nil {
		t.Fatal(err)
	}
	if len(p) == 0 || len(p)%instruction != 0 {
		t.Fatalf("a program of %d bytes", len(p))
	}
	return p
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestCompileLoadsNothing(t *testing.T) {
	if _, err := Compile(refusing("mkdir", "mkdirat")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(t.TempDir(), "x"), 0o700); err != nil {
		t.Errorf("the filter is in force: %v", err)
	}
}

func TestWhatLibcontainerRefusesIsNotKept(t *testing.T) {
	c := Cache{Dir: filepath.Join(t.TempDir(), "seccomp")}
	wrong := refusing("mkdir")
	wrong.Architectures = []string{"abacus"}
	if p, _, err := c.Program(wrong); err == nil {
		t.Errorf("a program of %d bytes for an architecture that there is not", len(p))
	}
	if _, err := os.Lstat(c.Dir); err == nil {
		t.Error("there is an entry for it")
	}
}

// What a program depends on is in the key, and a second question is answered from the file.
func TestAnEntryPerProfile(t *testing.T) {
	c := Cache{Dir: filepath.Join(t.TempDir(), "seccomp")}
	one, two := program(t, c, refusing("mkdir")), program(t, c, refusing("rmdir"))
	if bytes.Equal(one, two) {
		t.Error("two profiles have one program")
	}
	if n := len(entries(t, c.Dir)); n != 2 {
		t.Errorf("%d entries for two profiles", n)
	}
	if !bytes.Equal(one, program(t, c, refusing("mkdir"))) {
		t.Error("the program of a profile changed")
	}
	if n := len(entries(t, c.Dir)); n != 2 {
		t.Errorf("%d entries after the second question", n)
	}
	if st, err := os.Stat(c.Dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v, %v", st.Mode(), err)
	}

	key, err := keyOf(refusing("mkdir"))
	if err != nil {
		t.Fatal(err)
	}
	planted := bytes.Repeat(two[:instruction], 3)
	if err := c.keep(filepath.Join(c.Dir, key), planted); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(program(t, c, refusing("mkdir")), planted) {
		t.Error("the answer does not come from the entry")
	}
}

// What the program has of a profile init need not be told, but where a launcher of before would take it for all.
func TestWhatInitIsTold(t *testing.T) {
	c := Cache{Dir: filepath.Join(t.TempDir(), "seccomp")}
	rules := []*configs.Syscall{
		{Name: "read", Action: configs.Allow}, {Name: "openat2", Action: configs.Allow}, {Name: "write", Action: configs.Allow},
		{Name: "no_such_call", Action: configs.Allow},
	}
	for name, test := range map[string]struct {
		action configs.Action
		rules  []*configs.Syscall
		want   string
	}{
		"what is not named is refused": {configs.Errno, rules, "openat2"},
		"it ends the process":          {configs.KillProcess, rules, "openat2"},
		"it is allowed":                {configs.Allow, refusing("mkdir", "openat2", "rmdir").Syscalls, "mkdir openat2 rmdir"},
		"a listener":                   {configs.Errno, append([]*configs.Syscall{{Name: "mkdir", Action: configs.Notify}}, rules...), "mkdir read openat2 write no_such_call"},
	} {
		config := &configs.Seccomp{DefaultAction: test.action, Syscalls: test.rules, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}}
		for range 2 {
			_, rest, err := c.Program(config)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, call := range rest.Syscalls {
				got = append(got, call.Name)
			}
			if strings.Join(got, " ") != test.want || rest.DefaultAction != test.action || len(rest.Flags) != 1 {
				t.Errorf("%s: init is told %v, %+v", name, got, rest)
			}
		}
		if len(config.Syscalls) != len(test.rules) {
			t.Errorf("%s: the profile itself was changed", name)
		}
	}
}

// A damaged entry, or one that somebody else could have written, is replaced.
func TestDamagedEntryIsCompiledAnew(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string, data []byte) error{
		"empty": func(_ *testing.T, path string, _ []byte) error { return os.WriteFile(path, nil, 0o600) },
		"truncated": func(_ *testing.T, path string, data []byte) error {
			return os.WriteFile(path, data[:len(data)-8], 0o600)
		},
		"longer": func(_ *testing.T, path string, data []byte) error {
			return os.WriteFile(path, append(data, data[len(data)-8:]...), 0o600)
		},
		"a bit turned": func(_ *testing.T, path string, data []byte) error {
			data[len(data)-3] ^= 4
			return os.WriteFile(path, data, 0o600)
		},
		"huge": func(_ *testing.T, path string, _ []byte) error { return os.Truncate(path, 1<<40) },
		"another profile's": func(t *testing.T, path string, _ []byte) error {
			other := Cache{Dir: t.TempDir()}
			program(t, other, refusing("rmdir"))
			return os.Rename(entries(t, other.Dir)[0], path)
		},
		"writable for all": func(_ *testing.T, path string, _ []byte) error { return os.Chmod(path, 0o666) },
		"a link": func(t *testing.T, path string, data []byte) error {
			target := filepath.Join(t.TempDir(), "target")
			if err := os.WriteFile(target, data, 0o600); err != nil {
				return err
			}
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Symlink(target, path)
		},
		"another user's": func(t *testing.T, path string, _ []byte) error {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			return os.Chown(path, 1000, 1000)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := Cache{Dir: filepath.Join(t.TempDir(), "seccomp")}
			want := program(t, c, refusing("mkdir"))
			path := entries(t, c.Dir)[0]
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(t, path, data); err != nil {
				t.Fatal(err)
			}
			if _, err := read(path); err == nil {
				t.Error("it counts as whole")
			}
			if !bytes.Equal(program(t, c, refusing("mkdir")), want) {
				t.Error("another program than before")
			}
			if _, err := read(path); err != nil {
				t.Errorf("it was not replaced: %v", err)
			}
		})
	}
}

func TestCacheThatCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, Cache{Dir: filepath.Join(file, "seccomp")}, refusing("mkdir"))
}

func TestCacheIsBounded(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	for i := range maxEntries + 5 {
		if err := c.keep(filepath.Join(c.Dir, fmt.Sprint("entry", i)), make([]byte, instruction)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(entries(t, c.Dir)); n != maxEntries {
		t.Errorf("%d entries, want %d", n, maxEntries)
	}
	if _, err := os.Lstat(filepath.Join(c.Dir, fmt.Sprint("entry", maxEntries+4))); err != nil {
		t.Errorf("the newest is not there: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(c.Dir, "entry0")); !os.IsNotExist(err) {
		t.Errorf("the oldest is still there (%v)", err)
	}
}

func TestSealedProgramCannotBeChanged(t *testing.T) {
	file, err := Seal([]byte("program "))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("P"), 0); err == nil {
		t.Error("it can be written")
	}
	if err := file.Truncate(1); err == nil {
		t.Error("it can be truncated")
	}
	if got, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0); err != nil || got&memfile.Seals != memfile.Seals {
		t.Errorf("memfile.Seals %#x, %v", got, err)
	}
}

func TestWorthwhile(t *testing.T) {
	for name, test := range map[string]struct {
		config *configs.Seccomp
		want   bool
	}{
		"unconfined": {nil, false},
		"no rules":   {&configs.Seccomp{DefaultAction: configs.Errno}, false},
		"rules":      {refusing("mkdir"), true},
	} {
		if got := Worthwhile(test.config); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
