package spec

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

var selinuxLevel = regexp.MustCompile(`^s\d(-s\d)?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?$`)

// SELinuxLabels are the labels of a process and of its files.
//
// For a pod, podLabel is "" and a new pair of categories is reserved, unless the request names a level; it is given back
// with ReleaseSELinuxLabel when the pod is removed. For a container podLabel is the pod's process label: all of it holds if
// the request has no options, and its level if the request names none. Both labels are "" where SELinux is off.
func SELinuxLabels(opts *cri.SELinuxOption, podLabel string) (process, mount string, err error) {
	const field = "linux.security_context.selinux_options"
	options, err := selinuxOptions(field, opts)
	if err != nil {
		return "", "", err
	}
	if podLabel != "" && opts.GetLevel() == "" {
		pod, err := selinux.DupSecOpt(podLabel)
		if err != nil {
			return "", "", fmt.Errorf("SELinux label %q of the pod: %w", podLabel, err)
		}
		if len(options) > 0 {
			pod = slices.DeleteFunc(pod, func(o string) bool { return !strings.HasPrefix(o, "level:") })
		}
		options = append(options, pod...)
	}
	process, mount, err = label.InitLabels(options)
	if err != nil {
		return "", "", fmt.Errorf("%s: %w: %w", field, err, errdefs.ErrInvalidArgument)
	}
	if process != "" {
		if err := selinux.SecurityCheckContext(process); err != nil {
			if podLabel == "" {
				selinux.ReleaseLabel(process)
			}
			return "", "", invalid(field, "the policy has no context %q", process)
		}
	}
	return process, mount, nil
}

// ReleaseSELinuxLabel gives the categories of a label free. "" and unknown labels are no error.
func ReleaseSELinuxLabel(processLabel string) {
	selinux.ReleaseLabel(processLabel)
}

// ReserveSELinuxLabel takes the categories of a label that a daemon before this one gave out.
func ReserveSELinuxLabel(processLabel string) error {
	if err := selinux.ReserveLabelV2(processLabel); err != nil {
		return fmt.Errorf("reserve SELinux label %q: %w", processLabel, err)
	}
	return nil
}

// RelabelSELinux gives a file, or a folder with all that is in it, the mount label of a container. File systems without
// labels are left alone.
func RelabelSELinux(path, mountLabel string) error {
	if err := label.Relabel(path, mountLabel, false); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	return nil
}

func selinuxOptions(field string, opts *cri.SELinuxOption) ([]string, error) {
	if level := opts.GetLevel(); level != "" && !selinuxLevel.MatchString(level) {
		return nil, invalid(field+".level", "%q is not an SELinux level", level)
	}
	var out []string
	for _, o := range []struct{ name, value string }{
		{"user", opts.GetUser()}, {"role", opts.GetRole()}, {"type", opts.GetType()}, {"level", opts.GetLevel()},
	} {
		if o.value != "" {
			out = append(out, o.name+":"+o.value)
		}
	}
	return out, nil
}
