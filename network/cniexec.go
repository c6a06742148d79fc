package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	maxPluginOutput = 4 << 20 // a result; more is a plugin gone mad
	maxPluginStderr = 4 << 10 // of what it says when it fails
	// killDelay is how long a killed plugin's output may stay open, in hands of a process that it left behind.
	killDelay = time.Second
	// busyRetries and busyDelay cover a plugin that is being installed or was just written by another thread's fork.
	busyRetries = 5
	busyDelay   = 200 * time.Millisecond
)

// pluginExec runs plugins for libcni. Its own way of doing so would wait for ever on a process that a killed plugin left
// with its output, and tells nothing of what a plugin wrote to stderr.
type pluginExec struct {
	version.PluginDecoder
	inherited []*os.File // plugins get these besides
}

// FindInPath finds a plugin's program.
func (*pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin runs the plugin at path. When ctx ends, its whole process group is killed.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	for try := 0; ; try++ {
		out, err := e.exec(ctx, path, stdin, env)
		if !errors.Is(err, syscall.ETXTBSY) || try == busyRetries {
			return out, err
		}
		select {
		case <-time.After(busyDelay):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (e *pluginExec) exec(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	stdout, stderr := cappedBuffer{max: maxPluginOutput}, cappedBuffer{max: maxPluginStderr}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.ExtraFiles = e.inherited
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	err := cmd.Run()
	if err == nil && stdout.cut {
		err = fmt.Errorf("output exceeds %d bytes", maxPluginOutput)
	}
	if errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil {
		err = nil // a process left behind that holds the output open is odd, but the plugin has said what it had to say
	}
	out := bytes.TrimSpace(stdout.buf.Bytes())
	if err == nil && len(out) > 0 && !json.Valid(out) {
		const shown = 100
		err = fmt.Errorf("its output is no JSON: %q", out[:min(len(out), shown)])
	}
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("plugin was killed: %w", ctx.Err())
	}
	return nil, pluginError(filepath.Base(path), err, stdout.buf.Bytes(), stderr.buf.Bytes())
}

// eachPlugin runs the plugins of one DEL, and holds back what goes wrong until the last of them has run: libcni itself ends
// with the first that fails, and the plugins before it in the network keep addresses and ports.
type eachPlugin struct {
	*pluginExec
	left int // plugins to come
	errs []error
}

// FindInPath finds a plugin's program. One that is not there fails when it is run.
func (e *eachPlugin) FindInPath(plugin string, paths []string) (string, error) {
	path, err := e.pluginExec.FindInPath(plugin, paths)
	if err != nil {
		e.errs = append(e.errs, fmt.Errorf("plugin %s: %w", plugin, err))
		return "", nil
	}
	return path, nil
}

// ExecPlugin runs the plugin at path, if there is one.
func (e *eachPlugin) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	var out []byte
	if path != "" {
		ctx, cancel := context.WithTimeout(ctx, pluginDelLimit)
		defer cancel()
		var err error
		if out, err = e.pluginExec.ExecPlugin(ctx, path, stdin, env); err != nil {
			e.errs = append(e.errs, err)
		}
	}
	if e.left--; e.left > 0 {
		return out, nil
	}
	return out, errors.Join(e.errs...)
}

// pluginError joins all that is known of a failure: the error object that the plugin printed, the exit status where there
// is none, and its last words.
func pluginError(plugin string, err error, stdout, stderr []byte) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		err = fmt.Errorf("plugin %s: %w", plugin, &said)
	} else {
		err = fmt.Errorf("plugin %s: %w", plugin, err)
	}
	if words := strings.TrimSpace(string(stderr)); words != "" {
		err = fmt.Errorf("%w (stderr: %s)", err, words)
	}
	return err
}

// A cappedBuffer keeps the first max bytes written to it, and remembers whether there were more. The buffer is not
// embedded: its ReadFrom would pass the cap by.
type cappedBuffer struct {
	buf bytes.Buffer
	max int
	cut bool
}

func (b *cappedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), b.max-b.buf.Len())
	b.cut = b.cut || keep < len(p)
	b.buf.Write(p[:keep])
	return len(p), nil
}
