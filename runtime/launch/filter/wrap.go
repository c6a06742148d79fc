//go:build cgo && seccomp

package filter

// libseccomp is linked with this package by libseccomp-golang. --wrap makes the linker send its callers to __wrap_NAME,
// which has the function itself as __real_NAME.

/*
#cgo LDFLAGS: -Wl,--wrap=seccomp_rule_add_array -Wl,--wrap=seccomp_export_bpf
#include "wrap.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// compiling is held while exported filters are captured.
var compiling sync.Mutex

// Compile has libcontainer compile the filter of config, as its init would, and returns the program that libseccomp makes
// of it. Nothing is loaded. What libcontainer puts in front of it when it loads it (its answer to system calls newer than
// the profile) is not in it.
func Compile(config *configs.Seccomp) ([]byte, error) {
	fd, err := unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "seccomp")
	defer file.Close()

	compiling.Lock()
	defer compiling.Unlock()
	C.berth_filter_capture(C.int(fd))
	_, err = seccomp.InitSeccomp(config)
	C.berth_filter_capture(-1)
	if !errors.Is(err, unix.EALREADY) {
		return nil, fmt.Errorf("compile the seccomp filter: %w", err)
	}
	return readWhole(file)
}

// give makes program the filter of this process. It can be called once, and the memory must stay.
func give(program []byte) {
	C.berth_filter_give(unsafe.Pointer(unsafe.SliceData(program)), C.size_t(len(program)))
}

// libraryVersion is that of libseccomp.
func libraryVersion() string {
	return fmt.Sprint(seccomp.Version())
}

// highest returns the rules for the system calls with the highest number in each architecture, as libcontainer looks for them.
func highest(config *configs.Seccomp) ([]*configs.Syscall, error) {
	native, err := libseccomp.GetNativeArch()
	if err != nil {
		return nil, err
	}
	archs := []libseccomp.ScmpArch{native}
	for _, name := range config.Architectures {
		arch, err := libseccomp.GetArchFromString(name)
		if err != nil {
			return nil, err
		}
		archs = append(archs, arch)
	}
	var calls []*configs.Syscall
	for _, arch := range archs {
		var last libseccomp.ScmpSyscall
		var rule *configs.Syscall
		for _, call := range config.Syscalls {
			if number, err := libseccomp.GetSyscallFromNameByArch(call.Name, arch); err == nil && number > last {
				last, rule = number, call
			}
		}
		if rule != nil && !slices.Contains(calls, rule) {
			calls = append(calls, rule)
		}
	}
	return calls, nil
}
