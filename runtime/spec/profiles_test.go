package spec

//lint:file-ignore SA1019 the deprecated fields must go on working

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const blockSethostname = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}`

func profile(kind cri.SecurityProfile_ProfileType, ref string) *cri.SecurityProfile {
	return &cri.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
}

func TestSeccomp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(file, []byte(blockSethostname), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*request)
		want   string // none, default, local, or a word of the error
	}{
		"nothing":            {func(r *request) {}, "none"},
		"unconfined":         {func(r *request) { r.sc.Seccomp = profile(cri.SecurityProfile_Unconfined, "") }, "none"},
		"default":            {func(r *request) { r.sc.Seccomp = profile(cri.SecurityProfile_RuntimeDefault, "") }, "default"},
		"localhost":          {func(r *request) { r.sc.Seccomp = profile(cri.SecurityProfile_Localhost, file) }, "local"},
		"localhost prefixed": {func(r *request) { r.sc.Seccomp = profile(cri.SecurityProfile_Localhost, "localhost/"+file) }, "local"},
		"privileged":         {func(r *request) { r.privileged(); r.sc.Seccomp = profile(cri.SecurityProfile_Localhost, "/nowhere") }, "none"},
		"old default":        {func(r *request) { r.sc.SeccompProfilePath = "runtime/default" }, "default"},
		"old localhost":      {func(r *request) { r.sc.SeccompProfilePath = "localhost/" + file }, "local"},
		"old unconfined":     {func(r *request) { r.sc.SeccompProfilePath = "unconfined" }, "none"},
		"new wins over old": {func(r *request) {
			r.sc.SeccompProfilePath, r.sc.Seccomp = "localhost/"+file, profile(cri.SecurityProfile_Unconfined, "")
		}, "none"},
		"old unknown":      {func(r *request) { r.sc.SeccompProfilePath = "docker/default" }, "seccomp"},
		"missing":          {func(r *request) { r.sc.Seccomp = profile(cri.SecurityProfile_Localhost, "/nowhere") }, "nowhere"},
		"relative":         {func(r *request) { r.sc.Seccomp = profile(cri.SecurityProfile_Localhost, "p.json") }, "absolute"},
		"localhost empty":  {func(r *request) { r.sc.Seccomp = profile(cri.SecurityProfile_Localhost, "") }, "localhost_ref"},
		"default with ref": {func(r *request) { r.sc.Seccomp = profile(cri.SecurityProfile_RuntimeDefault, "x") }, "localhost_ref"},
		"unknown type":     {func(r *request) { r.sc.Seccomp = profile(7, "") }, "profile_type"},
		"no kernel support": {func(r *request) {
			r.Node.Seccomp, r.sc.Seccomp = false, profile(cri.SecurityProfile_RuntimeDefault, "")
		}, "seccomp"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRequest()
			tt.change(r)
			s, _, err := Build(r.Input)
			if !slices.Contains([]string{"none", "default", "local"}, tt.want) {
				wantInvalid(t, err, tt.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := "none"
			if f := s.Linux.Seccomp; f != nil && f.DefaultAction == specs.ActErrno {
				got = "default"
			} else if f != nil {
				got = "local"
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestDefaultSeccompFollowsCapabilities(t *testing.T) {
	allows := func(f *specs.LinuxSeccomp, call string) bool {
		return slices.ContainsFunc(f.Syscalls, func(s specs.LinuxSyscall) bool {
			return s.Action == specs.ActAllow && slices.Contains(s.Names, call)
		})
	}
	if f := DefaultSeccomp(nil); allows(f, "sethostname") || !allows(f, "read") {
		t.Error("without capabilities read is allowed, sethostname is not")
	}
	admin := []string{"CAP_SYS_ADMIN"}
	if f := DefaultSeccomp(&specs.LinuxCapabilities{Bounding: admin, Effective: admin, Permitted: admin}); !allows(f, "sethostname") {
		t.Error("SYS_ADMIN may call sethostname")
	}
}

func TestParseSeccompRejects(t *testing.T) {
	for _, data := range []string{
		"", "{", "[]", "{}", `{"defaultAction":"ALLOW"}`, blockSethostname + "{}",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"x"}]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[],"action":"SCMP_ACT_LOG"}]}`,
	} {
		_, err := ParseSeccomp([]byte(data))
		wantInvalid(t, err, "")
	}
}

func FuzzParseSeccomp(f *testing.F) {
	f.Add([]byte(blockSethostname))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"architectures":["SCMP_ARCH_X86_64"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		filter, err := ParseSeccomp(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(filter)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseSeccomp(again); err != nil {
			t.Errorf("what was accepted is not accepted again: %v\n%s", err, again)
		}
	})
}

func FuzzSecurityProfile(f *testing.F) {
	for _, s := range []string{"", "runtime/default", "unconfined", "localhost/x", "localhost/", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, old string) {
		p, err := securityProfile("f", nil, old)
		if err != nil {
			return
		}
		if (p == nil) != (old == "") {
			t.Errorf("%q gives %v", old, p)
		}
		if p.GetProfileType() == cri.SecurityProfile_Localhost && "localhost/"+p.GetLocalhostRef() != old {
			t.Errorf("%q became %q", old, p.GetLocalhostRef())
		}
	})
}

func TestAppArmor(t *testing.T) {
	local := profile(cri.SecurityProfile_Localhost, "mine")
	tests := map[string]struct {
		change func(*request)
		want   string // the profile, or "!word" for an error
	}{
		"nothing":               {func(r *request) {}, "berth-default"},
		"default":               {func(r *request) { r.sc.Apparmor = profile(cri.SecurityProfile_RuntimeDefault, "") }, "berth-default"},
		"unconfined":            {func(r *request) { r.sc.Apparmor = profile(cri.SecurityProfile_Unconfined, "") }, ""},
		"localhost":             {func(r *request) { r.sc.Apparmor = local }, "mine"},
		"localhost prefixed":    {func(r *request) { r.sc.Apparmor = profile(cri.SecurityProfile_Localhost, "localhost/mine") }, "mine"},
		"not loaded":            {func(r *request) { r.sc.Apparmor = profile(cri.SecurityProfile_Localhost, "other") }, "!not loaded"},
		"old":                   {func(r *request) { r.sc.ApparmorProfile = "localhost/mine" }, "mine"},
		"new wins over old":     {func(r *request) { r.sc.ApparmorProfile, r.sc.Apparmor = "unconfined", local }, "mine"},
		"old unknown":           {func(r *request) { r.sc.ApparmorProfile = "mine" }, "!apparmor"},
		"privileged":            {func(r *request) { r.privileged() }, ""},
		"privileged, localhost": {func(r *request) { r.privileged(); r.sc.Apparmor = local }, "mine"},
		"off":                   {func(r *request) { r.Node.AppArmor = false }, ""},
		"off, unconfined":       {func(r *request) { r.Node.AppArmor = false; r.sc.ApparmorProfile = "unconfined" }, ""},
		"off, localhost":        {func(r *request) { r.Node.AppArmor = false; r.sc.Apparmor = local }, "!not enabled"},
		"off, default":          {func(r *request) { r.Node.AppArmor = false; r.sc.Apparmor = profile(0, "") }, "!not enabled"},
		"default not loaded":    {func(r *request) { r.Node.AppArmorDefault = ""; r.sc.Apparmor = profile(0, "") }, "!could not be loaded"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRequest()
			r.Node.AppArmor, r.Node.AppArmorDefault = true, "berth-default"
			r.Node.AppArmorLoaded = func(p string) bool { return p == "mine" }
			tt.change(r)
			s, _, err := Build(r.Input)
			if word, bad := strings.CutPrefix(tt.want, "!"); bad {
				wantInvalid(t, err, word)
			} else if err != nil || s.Process.ApparmorProfile != tt.want {
				t.Errorf("got %v, %v, want %q", s, err, tt.want)
			}
		})
	}
}

func TestSELinuxOptions(t *testing.T) {
	got, err := selinuxOptions("f", &cri.SELinuxOption{User: "system_u", Role: "system_r", Type: "svirt_lxc_net_t", Level: "s0:c1,c5"})
	if err != nil {
		t.Fatal(err)
	}
	wantShow(t, "options", got, `["user:system_u","role:system_r","type:svirt_lxc_net_t","level:s0:c1,c5"]`)
	for _, level := range []string{"s0", "s0-s1:c1.c1023", "s0:c1,c2,c3"} {
		if _, err := selinuxOptions("f", &cri.SELinuxOption{Level: level}); err != nil {
			t.Errorf("%s: %v", level, err)
		}
	}
	for _, level := range []string{"gibberish", "s0:", "s0:c12345", "s0,c1"} {
		_, _, err := SELinuxLabels(&cri.SELinuxOption{Level: level}, "")
		wantInvalid(t, err, "level")
	}
}
