package enter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
)

// A Plan says what the program does, in its order. The zero value of a field leaves that step out unless it says otherwise.
type Plan struct {
	// OOMScoreAdj is written as it is.
	OOMScoreAdj int
	// CgroupProcs are the files cgroup.procs of the cgroups to join. On cgroup v2 the process can be born there instead.
	CgroupProcs []string
	Rlimits     []Rlimit
	// Namespaces of the container's init to join, as CLONE_NEW* flags.
	Namespaces uint32
	// OwnCgroupNamespace makes the process's own cgroup the root of what it sees, in place of the one of init.
	OwnCgroupNamespace bool
	// Keyring is the name of the session keyring; empty: it keeps that of the caller.
	Keyring         string
	NoNewPrivileges bool
	Umask           *uint32
	// Filter is the compiled seccomp filter, in the kernel's form (struct sock_filter); FilterFlags are for seccomp(2).
	Filter      []byte
	FilterFlags uint32
	Cwd         string
	UID, GID    uint32
	Groups      []uint32
	// The capability sets, a bit for each. All are set.
	Bounding, Effective, Permitted, Inheritable, Ambient uint64
	// AppArmor is the profile to change to with execve.
	AppArmor string
	// Args are the command, looked up in the container by PATH of Env, and its arguments.
	Args []string
	// Env holds NAME=VALUE; of several with one name the last counts. HOME, if it is empty or not there, is looked up in
	// the container's /etc/passwd.
	Env []string
	// Init, if it is not nil, makes the process the init of a new container; see Create.
	Init *Init
}

// A Rlimit is a resource limit, by its number.
type Rlimit struct {
	Resource   uint32
	Soft, Hard uint64
}

// The bits of header.Options.
const (
	noNewPrivileges = 1 << iota
	ownCgroupNamespace
	findHome
	setUmask
	loadFilter
)

// magic begins a plan, so that nothing else is taken for one.
const magic = 0x31746e65

// header is struct plan of enter.c, in the machine's own order. Lists and texts are named by their offset from the start of
// the plan, 0 where there is none; texts end with a zero byte.
type header struct {
	Magic, Size, Namespaces, Options        uint32
	UID, GID, Umask, FilterFlags            uint32
	Groups, GroupsLen, Rlimits, RlimitsLen  uint32
	Args, ArgsLen, Env, EnvLen              uint32
	Cgroups, CgroupsLen, Filter, FilterLen  uint32
	Path, Cwd, Keyring, AppArmor            uint32
	OOM, Init                               uint32
	Bounding, Effective, Permitted, Inherit uint64
	Ambient                                 uint64
}

const (
	// MaxSize bounds an encoded plan, in bytes: more than the kernel takes of arguments and environment by default.
	MaxSize = 4 << 20
	// instructionSize is that of a struct sock_filter.
	instructionSize = 8
	maxInstructions = 4096 // BPF_MAXINSNS
)

// Encode returns the plan as the program reads it. The error names the field that cannot be told to the kernel.
func (p *Plan) Encode() ([]byte, error) {
	env, search, home, err := environment(p.Env)
	if err != nil {
		return nil, err
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	w := &writer{buf: make([]byte, binary.Size(header{}), 8<<10)}
	h := header{
		Magic: magic, Namespaces: p.Namespaces, Options: p.options(home), UID: p.UID, GID: p.GID, FilterFlags: p.FilterFlags,
		GroupsLen: uint32(len(p.Groups)), RlimitsLen: uint32(len(p.Rlimits)), ArgsLen: uint32(len(p.Args)), EnvLen: uint32(len(env)),
		CgroupsLen: uint32(len(p.CgroupProcs)), FilterLen: uint32(len(p.Filter) / instructionSize),
		Bounding: p.Bounding, Effective: p.Effective, Permitted: p.Permitted, Inherit: p.Inheritable, Ambient: p.Ambient,
	}
	if p.Umask != nil {
		h.Umask = *p.Umask
	}
	h.OOM = w.text(fmt.Sprint(p.OOMScoreAdj))
	h.Cgroups = w.offsets(p.CgroupProcs)
	h.Rlimits = w.rlimits(p.Rlimits)
	h.Groups = w.list32(p.Groups)
	h.Filter = w.raw(p.Filter)
	h.Cwd = w.text(p.Cwd)
	h.Keyring = w.optional(p.Keyring)
	if p.AppArmor != "" {
		h.AppArmor = w.text("exec " + p.AppArmor)
	}
	h.Path = w.optional(search)
	if p.Init != nil {
		h.Init = w.init(p.Init)
	}
	h.Args = w.pointers(p.Args)
	h.Env = w.pointers(env)
	if len(w.buf) > MaxSize {
		return nil, fmt.Errorf("command and environment are %d bytes long, more than %d", len(w.buf), MaxSize)
	}
	h.Size = uint32(len(w.buf))
	if _, err := binary.Encode(w.buf, binary.NativeEndian, h); err != nil {
		return nil, err
	}
	return w.buf, nil
}

func (p *Plan) options(home bool) uint32 {
	var options uint32
	for bit, set := range map[uint32]bool{
		noNewPrivileges: p.NoNewPrivileges, ownCgroupNamespace: p.OwnCgroupNamespace, findHome: home,
		setUmask: p.Umask != nil, loadFilter: len(p.Filter) > 0,
	} {
		if set {
			options |= bit
		}
	}
	return options
}

func (p *Plan) check() error {
	switch {
	case len(p.Args) == 0 || p.Args[0] == "":
		return errors.New("the command is empty")
	case !strings.HasPrefix(p.Cwd, "/"):
		return fmt.Errorf("the working directory %q is not an absolute path", p.Cwd)
	case len(p.Filter)%instructionSize != 0 || len(p.Filter) > maxInstructions*instructionSize:
		return fmt.Errorf("a seccomp filter of %d bytes", len(p.Filter))
	}
	for what, texts := range map[string][]string{
		"command": p.Args, "cgroup": p.CgroupProcs, "working directory": {p.Cwd}, "keyring": {p.Keyring}, "AppArmor profile": {p.AppArmor},
	} {
		if i := slices.IndexFunc(texts, hasZero); i >= 0 {
			return fmt.Errorf("the %s %q has a zero byte", what, texts[i])
		}
	}
	if p.Init != nil {
		return p.Init.check()
	}
	return nil
}

func hasZero(s string) bool { return strings.IndexByte(s, 0) >= 0 }

// environment returns the last variable of each name in their order, the value of PATH, and whether HOME is to be looked
// up. The rules are those of libcontainer's prepareEnv.
func environment(all []string) (env []string, search string, home bool, err error) {
	home = true
	seen := make(map[string]bool, len(all))
	for i := len(all) - 1; i >= 0; i-- {
		name, value, ok := strings.Cut(all[i], "=")
		switch {
		case !ok || name == "":
			return nil, "", false, fmt.Errorf("environment variable %q has no name or no value", all[i])
		case hasZero(all[i]):
			return nil, "", false, fmt.Errorf("environment variable %q has a zero byte", name)
		case seen[name]:
			continue
		}
		seen[name] = true
		switch name {
		case "PATH":
			search = cleanPath(value)
		case "HOME":
			if value == "" {
				continue
			}
			home = false
		}
		env = append(env, all[i])
	}
	slices.Reverse(env)
	return env, search, home, nil
}

// cleanPath makes the folders of a PATH what os/exec joins a name to: it is the joined path by which a program is executed, and
// which a script sees.
func cleanPath(value string) string {
	if value == "" {
		return ""
	}
	dirs := strings.Split(value, ":")
	for i, dir := range dirs {
		dirs[i] = path.Clean(dir)
	}
	return strings.Join(dirs, ":")
}

// A writer appends what a plan names by offset.
type writer struct{ buf []byte }

func (w *writer) here() uint32 { return uint32(min(len(w.buf), math.MaxUint32)) } // what is too long is refused in the end

func (w *writer) align() {
	w.buf = append(w.buf, make([]byte, -len(w.buf)&7)...)
}

func (w *writer) text(s string) uint32 {
	offset := w.here()
	w.buf = append(append(w.buf, s...), 0)
	return offset
}

func (w *writer) optional(s string) uint32 {
	if s == "" {
		return 0
	}
	return w.text(s)
}

func (w *writer) raw(data []byte) uint32 {
	w.align()
	offset := w.here()
	w.buf = append(w.buf, data...)
	return offset
}

func (w *writer) list32(list []uint32) uint32 {
	var data bytes.Buffer
	_ = binary.Write(&data, binary.NativeEndian, list) // a buffer takes everything
	return w.raw(data.Bytes())
}

func (w *writer) offsets(texts []string) uint32 {
	list := make([]uint32, len(texts))
	for i, s := range texts {
		list[i] = w.text(s)
	}
	return w.list32(list)
}

func (w *writer) rlimits(limits []Rlimit) uint32 {
	var data bytes.Buffer
	for _, l := range limits {
		_ = binary.Write(&data, binary.NativeEndian, struct {
			Resource, _ uint32
			Soft, Hard  uint64
		}{Resource: l.Resource, Soft: l.Soft, Hard: l.Hard})
	}
	return w.raw(data.Bytes())
}

// pointers writes what the program makes the list for execve of: a 64-bit offset for each text, room for one more, and the
// zero that ends it.
func (w *writer) pointers(texts []string) uint32 {
	list := make([]byte, 8*(len(texts)+2))
	for i, s := range texts {
		binary.NativeEndian.PutUint64(list[8*i:], uint64(w.text(s)))
	}
	return w.raw(list)
}
