package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/conffile"
	"github.com/berth-node/berth/internal/errdefs"
)

const (
	profileDefault    = "runtime/default"
	profileUnconfined = "unconfined"
	profileLocalhost  = "localhost/"
)

// seccomp sets the filter of system calls. Privileged containers have none.
func (b *builder) seccomp() error {
	if b.sc.GetPrivileged() {
		return nil
	}
	//lint:ignore SA1019 clients still send the deprecated field, and its successor wins
	profile, err := securityProfile("linux.security_context.seccomp", b.sc.GetSeccomp(), b.sc.GetSeccompProfilePath())
	if err != nil {
		return err
	}
	b.spec.Linux.Seccomp, err = seccompFilter(profile, b.spec.Process.Capabilities, b.Node, b.LoadSeccomp)
	return err
}

// seccompFilter is the filter for a profile; nil is unconfined, as CRI defines it.
func seccompFilter(profile *cri.SecurityProfile, caps *specs.LinuxCapabilities, node Node,
	load func(string) (*specs.LinuxSeccomp, error),
) (*specs.LinuxSeccomp, error) {
	const field = "linux.security_context.seccomp"
	if profile == nil || profile.GetProfileType() == cri.SecurityProfile_Unconfined {
		return nil, nil
	}
	if !node.Seccomp {
		return nil, invalid(field, "the node's kernel has no seccomp")
	}
	if profile.GetProfileType() == cri.SecurityProfile_RuntimeDefault {
		return DefaultSeccomp(caps), nil
	}
	path := strings.TrimPrefix(profile.GetLocalhostRef(), profileLocalhost)
	if !filepath.IsAbs(path) {
		return nil, invalid(field+".localhost_ref", "%q is not an absolute path", path)
	}
	if load == nil {
		load = LoadSeccompFile
	}
	filter, err := load(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	return filter, nil
}

// DefaultSeccomp is what RuntimeDefault means: containerd's profile, which allows more calls to those with capabilities.
func DefaultSeccomp(caps *specs.LinuxCapabilities) *specs.LinuxSeccomp {
	if caps == nil {
		caps = &specs.LinuxCapabilities{}
	}
	return seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: caps}, Linux: &specs.Linux{}})
}

// LoadSeccompFile reads a profile in the runtime spec's form.
func LoadSeccompFile(path string) (*specs.LinuxSeccomp, error) {
	data, err := conffile.Read(path)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	filter, err := ParseSeccomp(data)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", path, err)
	}
	return filter, nil
}

var seccompActions = []specs.LinuxSeccompAction{
	specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace,
	specs.ActAllow, specs.ActLog, specs.ActNotify,
}

// ParseSeccomp decodes a profile and checks what would otherwise fail at the container's start only.
func ParseSeccomp(data []byte) (*specs.LinuxSeccomp, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	var filter specs.LinuxSeccomp
	if err := dec.Decode(&filter); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if dec.More() {
		return nil, invalid("profile", "something follows the JSON object")
	}
	if !slices.Contains(seccompActions, filter.DefaultAction) {
		return nil, invalid("defaultAction", "%q is not an action", filter.DefaultAction)
	}
	for i, call := range filter.Syscalls {
		if !slices.Contains(seccompActions, call.Action) {
			return nil, invalid(fmt.Sprintf("syscalls[%d].action", i), "%q is not an action", call.Action)
		}
		if len(call.Names) == 0 {
			return nil, invalid(fmt.Sprintf("syscalls[%d].names", i), "is empty")
		}
	}
	return &filter, nil
}

// securityProfile merges the two ways in which CRI names a profile: the message wins over the old string. nil means that
// nothing was asked for.
func securityProfile(field string, profile *cri.SecurityProfile, old string) (*cri.SecurityProfile, error) {
	if profile == nil {
		switch {
		case old == "":
			return nil, nil
		case old == profileDefault:
			return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
		case old == profileUnconfined:
			return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
		case strings.HasPrefix(old, profileLocalhost):
			profile = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost,
				LocalhostRef: strings.TrimPrefix(old, profileLocalhost)}
		default:
			return nil, invalid(field, "%q is not a profile", old)
		}
	}
	local := profile.GetProfileType() == cri.SecurityProfile_Localhost
	if _, known := cri.SecurityProfile_ProfileType_name[int32(profile.GetProfileType())]; !known {
		return nil, invalid(field+".profile_type", "%d is not known", profile.GetProfileType())
	}
	if local != (profile.GetLocalhostRef() != "") {
		return nil, invalid(field+".localhost_ref", "must be set for a Localhost profile, and only there")
	}
	return profile, nil
}
