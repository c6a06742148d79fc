package cri

import (
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

// The checks here are those that need the request alone: what is missing, malformed or out of range. Whether the node can
// do what is asked is the runtime's to say.

// maxName bounds names and IDs. Kubernetes' own longest is 253; the names here become names of files.
const maxName = 253

// maxHostname is the kernel's (HOST_NAME_MAX).
const maxHostname = 64

// invalid returns an ErrInvalidArgument that names the field.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// first returns the first error that is not nil.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkName checks a name that must be there and can be part of a path.
func checkName(field, v string) error {
	switch {
	case v == "":
		return invalid(field, "must not be empty")
	case len(v) > maxName:
		return invalid(field, "is %d bytes long, %d are allowed", len(v), maxName)
	case v == "." || v == "..", strings.ContainsRune(v, '/'), strings.ContainsFunc(v, unicode.IsControl):
		return invalid(field, "%q cannot be a name", v)
	}
	return nil
}

// checkWords checks strings that become arguments or variables of a process.
func checkWords(field string, words []string) error {
	for i, w := range words {
		if strings.ContainsRune(w, 0) {
			return invalid(fmt.Sprintf("%s[%d]", field, i), "must not contain a NUL")
		}
	}
	return nil
}

func checkCommand(field string, cmd []string) error {
	if len(cmd) == 0 || cmd[0] == "" {
		return invalid(field, "must name a command")
	}
	return checkWords(field, cmd)
}

// What the kernel allows of a path and of each name in it (PATH_MAX with its NUL, NAME_MAX), in bytes.
const (
	maxPath     = 4095
	maxPathPart = 255
)

// checkPath checks the path of a file on the node; empty is allowed.
func checkPath(field, v string) error {
	if v == "" {
		return nil
	}
	if !filepath.IsAbs(v) {
		return invalid(field, "%q is not an absolute path", shorten(v))
	}
	return checkFile(field, v)
}

// checkFile checks a path that need not be absolute, or is one in the container.
func checkFile(field, v string) error {
	if strings.ContainsRune(v, 0) {
		return invalid(field, "must not contain a NUL")
	}
	if len(v) > maxPath {
		return invalid(field, "is %d bytes long, the kernel allows %d", len(v), maxPath)
	}
	for part := range strings.SplitSeq(v, "/") {
		if len(part) > maxPathPart {
			return invalid(field, "has a name of %d bytes, the kernel allows %d", len(part), maxPathPart)
		}
	}
	return nil
}

func checkFiles(field string, paths []string) error {
	for i, p := range paths {
		if err := checkFile(fmt.Sprintf("%s[%d]", field, i), p); err != nil {
			return err
		}
	}
	return nil
}

// shorten is what an error shows of a text that can be of any length.
func shorten(v string) string {
	const most = 256
	if len(v) <= most {
		return v
	}
	return v[:most] + "…"
}

func checkPort(field string, v, least int32) error {
	if v < least || v > math.MaxUint16 {
		return invalid(field, "%d is not in the range %d to %d", v, least, math.MaxUint16)
	}
	return nil
}

// checkSeconds checks a timeout.
func checkSeconds(field string, v int64) error {
	if v < 0 {
		return invalid(field, "%d is negative", v)
	}
	return nil
}

// seconds is a timeout as a duration; what does not fit is the longest one, some 292 years.
func seconds(v int64) time.Duration {
	if v > math.MaxInt64/int64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(v) * time.Second
}

// checkEnum checks a value that a newer client may have and this version does not know. names is the enum's name table.
func checkEnum[E ~int32](field string, v E, names map[int32]string) error {
	if _, ok := names[int32(v)]; !ok {
		return invalid(field, "%d is not known", v)
	}
	return nil
}

// checkConnect checks what streams a client wants of a session.
func checkConnect(tty, stdin, stdout, stderr bool) error {
	if tty && stderr {
		return invalid("stderr", "must be false with tty, a terminal has one output")
	}
	if !stdin && !stdout && !stderr {
		return invalid("stdin, stdout, stderr", "one of them must be true")
	}
	return nil
}

func checkImage(field string, spec *cri.ImageSpec) error {
	if spec == nil {
		return invalid(field, "must be set")
	}
	image := spec.GetImage()
	switch {
	case image == "":
		return invalid(field+".image", "must not be empty")
	// The longest name (255), tag (128) and digest together, and then some.
	case len(image) > 1024:
		return invalid(field+".image", "is %d bytes long", len(image))
	case strings.ContainsFunc(image, unicode.IsControl):
		return invalid(field+".image", "%q cannot be an image", image)
	}
	return nil
}

func checkSandboxFilter(f *cri.PodSandboxFilter) error {
	if f.GetState() == nil {
		return nil
	}
	return checkEnum("filter.state", f.GetState().GetState(), cri.PodSandboxState_name)
}

func checkContainerFilter(f *cri.ContainerFilter) error {
	if f.GetState() == nil {
		return nil
	}
	return checkEnum("filter.state", f.GetState().GetState(), cri.ContainerState_name)
}

// checkCIDRs checks the pod CIDRs of a node: one per family, separated by commas; empty is none.
func checkCIDRs(field, v string) error {
	if v == "" {
		return nil
	}
	for c := range strings.SplitSeq(v, ",") {
		if _, err := netip.ParsePrefix(strings.TrimSpace(c)); err != nil {
			return invalid(field, "%q: %v", v, err)
		}
	}
	return nil
}
