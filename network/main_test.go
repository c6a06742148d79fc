package network

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideEnv tells the test program that it runs in namespaces of its own.
const insideEnv = "BERTH_TEST_OWN_NAMESPACES"

// TestMain runs the tests in a network and a mount namespace of their own, which stand for a host: what they do to links,
// rules and settings touches nothing else. It needs root or unprivileged user namespaces; without either the tests of
// pure functions run alone. Called by the name of the fake plugin the program is that.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == fakeName {
		os.Exit(fakePlugin())
	}
	if os.Getenv(insideEnv) == "" {
		if code, ok := rerun(); ok {
			os.Exit(code)
		}
		fmt.Fprintln(os.Stderr, "no namespaces of their own for the tests: those that need the kernel are skipped")
		os.Exit(m.Run())
	}
	if err := makeHost(); err != nil {
		fmt.Fprintln(os.Stderr, "set up the tests' namespaces:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func rerun() (code int, ok bool) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, false
	}
	return cmd.ProcessState.ExitCode(), true
}

func makeHost() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return err
	}
	_, err := run("ip", "link", "set", "lo", "up")
	return err
}

// needHost skips a test where there is no host to work on.
func needHost(t testing.TB) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("needs namespaces of its own: run as root")
	}
}

func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func mustRun(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := run(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
