package spec

import (
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// apparmor sets the AppArmor profile. Without a request a container has the default profile where AppArmor is enabled. A
// profile that was asked for where AppArmor is not enabled is an error, since somebody relies on it.
func (b *builder) apparmor() error {
	const field = "linux.security_context.apparmor"
	//lint:ignore SA1019 clients still send the deprecated field, and its successor wins
	profile, err := securityProfile(field, b.sc.GetApparmor(), b.sc.GetApparmorProfile())
	if err != nil {
		return err
	}
	asked := profile != nil && profile.GetProfileType() != cri.SecurityProfile_Unconfined
	switch {
	case !b.Node.AppArmor && asked:
		return invalid(field, "AppArmor is not enabled on this node")
	case !b.Node.AppArmor, profile != nil && !asked:
		return nil
	case profile.GetProfileType() == cri.SecurityProfile_Localhost:
		name := strings.TrimPrefix(profile.GetLocalhostRef(), profileLocalhost)
		if b.Node.AppArmorLoaded != nil && !b.Node.AppArmorLoaded(name) {
			return invalid(field+".localhost_ref", "the AppArmor profile %q is not loaded", name)
		}
		b.spec.Process.ApparmorProfile = name
	case b.sc.GetPrivileged():
	case asked && b.Node.AppArmorDefault == "":
		return invalid(field, "the default AppArmor profile could not be loaded on this node")
	default:
		b.spec.Process.ApparmorProfile = b.Node.AppArmorDefault
	}
	return nil
}
