//go:build !cgo || !seccomp

package filter

import (
	"errors"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// Compile fails: this binary was built without libseccomp, and libcontainer in it loads no filters.
func Compile(*configs.Seccomp) ([]byte, error) { return nil, errors.ErrUnsupported }

func highest(*configs.Seccomp) ([]*configs.Syscall, error) { return nil, errors.ErrUnsupported }

func give([]byte) {}

func libraryVersion() string { return "" }
