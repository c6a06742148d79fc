package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "TERM=xterm"
)

// process fills in what runs, but not its capabilities and profiles.
func (b *builder) process() error {
	args, err := Args(b.Image, b.Container)
	if err != nil {
		return err
	}
	env, limits, err := Env(b.Image, b.Container, b.Hostname)
	if err != nil {
		return err
	}
	b.limits = append(b.limits, limits...)
	p := b.spec.Process
	p.Args, p.Env = args, env
	if p.Cwd, err = Cwd(b.Image, b.Container); err != nil {
		return err
	}
	p.Terminal = b.Container.GetTty()
	p.User = b.User.oci()
	p.NoNewPrivileges = b.sc.GetNoNewPrivs()
	if !b.sc.GetPrivileged() {
		p.SelinuxLabel = b.ProcessLabel
	}
	b.spec.Linux.MountLabel = b.MountLabel
	return nil
}

// Args is the command line: the request's command replaces the image's entrypoint and its arguments, the request's args
// replace the image's arguments.
func Args(image ocispec.ImageConfig, container *cri.ContainerConfig) ([]string, error) {
	command, args := slices.Clone(container.GetCommand()), container.GetArgs()
	if len(command) == 0 {
		command = slices.Clone(image.Entrypoint)
		// Builders write an entrypoint of one empty string to say "none".
		if len(command) == 1 && command[0] == "" {
			command = nil
		}
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	all := append(command, args...)
	if len(all) == 0 {
		return nil, invalid("command", "neither the request nor the image names a command")
	}
	for _, a := range all {
		if strings.ContainsRune(a, 0) {
			return nil, invalid("command", "argument %.100q contains a NUL byte", a)
		}
	}
	return all, nil
}

// Cwd is the working directory, absolute and clean.
func Cwd(image ocispec.ImageConfig, container *cri.ContainerConfig) (string, error) {
	field, dir := "working_dir", container.GetWorkingDir()
	if dir == "" {
		field, dir = "image", image.WorkingDir
	}
	if len(dir) >= unix.PathMax || strings.ContainsRune(dir, 0) {
		return "", invalid(field, "the working directory %.100q is no path", dir)
	}
	return path.Join("/", dir), nil
}

// Env is the environment: PATH, TERM (with a terminal) and HOSTNAME as defaults, then the image's variables, then the
// request's; the last one of a name wins and stands where the first stood. HOME is left to libcontainer, which takes it
// from the /etc/passwd that the container will see, mounts included.
//
// Values that are not UTF-8 are possible in CRI but not in the JSON that an OCI runtime reads: they are returned as
// limitations.
func Env(image ocispec.ImageConfig, container *cri.ContainerConfig, hostname string) (env, limitations []string, err error) {
	vars := variables{at: map[string]int{}}
	vars.set(defaultPath)
	if container.GetTty() {
		vars.set(defaultTerm)
	}
	vars.set("HOSTNAME=" + hostname)
	for _, kv := range image.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			continue // an image's slip; no process could read it
		}
		if strings.ContainsRune(kv, 0) {
			return nil, nil, invalid("image", "its environment variable %.100q contains a NUL byte", kv)
		}
		vars.set(kv)
	}
	for _, kv := range container.GetEnvs() {
		name, value := kv.GetKey(), string(kv.GetValue())
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00"):
			return nil, nil, invalid("envs", "%q is not the name of a variable", name)
		case strings.ContainsRune(value, 0):
			return nil, nil, invalid("envs", "the value of %s contains a NUL byte", name)
		case !utf8.ValidString(value):
			limitations = append(limitations, fmt.Sprintf("environment variable %s: bytes that are not UTF-8 are replaced", name))
		}
		vars.set(name + "=" + value)
	}
	return vars.list, limitations, nil
}

// variables are an environment with the place of each name in it: a request has room for a million of them.
type variables struct {
	list []string
	at   map[string]int
}

// set puts kv in the place of a variable of the same name, or at the end.
func (v *variables) set(kv string) {
	name, _, _ := strings.Cut(kv, "=")
	if i, ok := v.at[name]; ok {
		v.list[i] = kv
		return
	}
	v.at[name] = len(v.list)
	v.list = append(v.list, kv)
}

// ExecProcess is a further process of a running container: as the container's own, but for the command.
func ExecProcess(container *specs.Spec, cmd []string, tty bool) *specs.Process {
	p := *container.Process
	p.Args = slices.Clone(cmd)
	p.Env = slices.Clone(p.Env)
	p.CommandLine = ""
	p.ConsoleSize = nil
	p.Terminal = tty
	hasTerm := slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") })
	if tty && !hasTerm {
		p.Env = append(p.Env, defaultTerm)
	}
	return &p
}
