package podspec

import (
	"testing"
)

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		spec      string
		abilities Abilities
		reason    string
		message   string
	}{
		"nothing special":  {spec: "{}"},
		"a safe sysctl":    {spec: "{securityContext: {sysctls: [{name: net.ipv4.tcp_syncookies, value: '1'}, {name: kernel/shm_rmid_forced, value: '1'}]}}"},
		"an unsafe sysctl": {spec: "{securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}}", reason: "SysctlForbidden", message: `forbidden sysctl: "kernel.msgmax" not allowlisted`},
		"an allowed one":   {spec: "{securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}}", abilities: Abilities{Sysctls: []string{"kernel.msg*"}}},
		"the host's network": {spec: "{hostNetwork: true, securityContext: {sysctls: [{name: net.ipv4.tcp_syncookies, value: '1'}]}}",
			reason: "SysctlForbidden", message: `forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host Net enabled`},
		"the host's IPC": {spec: "{hostIPC: true, securityContext: {sysctls: [{name: kernel.shm_rmid_forced, value: '1'}]}}",
			reason: "SysctlForbidden", message: `forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host IPC enabled`},
		"groups of the pod alone": {spec: "{securityContext: {supplementalGroupsPolicy: Strict}}", reason: "SupplementalGroupsPolicyNotSupported",
			message: "SupplementalGroupsPolicy=Strict is not supported in this node"},
		"which is possible": {spec: "{securityContext: {supplementalGroupsPolicy: Strict}}", abilities: Abilities{SupplementalGroups: true}},
		"merged groups":     {spec: "{securityContext: {supplementalGroupsPolicy: Merge}}"},
		"Windows":           {spec: "{os: {name: windows}}", reason: "PodOSNotSupported", message: "Failed to admit pod as the OS field doesn't match node OS"},
		"Linux":             {spec: "{os: {name: linux}}"},
		"AppArmor":          {spec: "{securityContext: {appArmorProfile: {type: RuntimeDefault}}}", reason: "AppArmor", message: "Cannot enforce AppArmor: AppArmor is not enabled on the host"},
		"no AppArmor":       {spec: "{securityContext: {appArmorProfile: {type: Unconfined}}}"},
		"which is there":    {spec: "{securityContext: {appArmorProfile: {type: RuntimeDefault}}}", abilities: Abilities{AppArmor: true}},
		"an empty profile": {spec: "{initContainers: [{name: i, securityContext: {appArmorProfile: {type: Localhost, localhostProfile: ' '}}}]}", abilities: Abilities{AppArmor: true},
			reason: "AppArmor", message: "Cannot enforce AppArmor: invalid empty AppArmor profile name"},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.abilities.Check(podOf(t, c.spec))
			if c.reason == "" {
				if got != nil {
					t.Errorf("%+v", *got)
				}
				return
			}
			if got == nil || got.Reason != c.reason || got.Message != c.message {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestSysctlPatterns(t *testing.T) {
	for pattern, ok := range map[string]bool{"kernel.msg*": true, "net.core.somaxconn": true, "fs.mqueue.*": true, "kernel.panic": false, "vm.*": false,
		"net.*.x": false, "*": false, "": false, "net.ipv4.": false, "kernel.shm*": true, "net/ipv4/*": true} {
		if err := CheckSysctlPattern(pattern); (err == nil) != ok {
			t.Errorf("%s: %v", pattern, err)
		}
	}
	if got := SafeSysctls(); len(got) < 5 {
		t.Errorf("%v", got)
	}
}
