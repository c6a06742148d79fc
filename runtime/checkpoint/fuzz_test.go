package checkpoint

import "testing"

// What criu prints of itself.
func FuzzVersion(f *testing.F) {
	f.Add("Version: 3.17.1\nGitID: v3.17\n")
	f.Add("Version: 4\n")
	f.Add("Version: -1.2.3\nVersion: 999999999999999999999")
	f.Fuzz(func(t *testing.T, out string) {
		if v, err := parseVersion(out); err == nil && (v < 0 || v > 999999) {
			t.Errorf("%q is %d", out, v)
		}
	})
}
