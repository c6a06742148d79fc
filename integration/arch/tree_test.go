package arch

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// largest is what a file may have that git keeps, in bytes. The largest that somebody wrote has a fifth of it.
const largest = 256 << 10

// TestNothingBuiltIsKept finds programs that a build has left in the tree and a commit has taken along.
func TestNothingBuiltIsKept(t *testing.T) {
	const root = "../.."
	list, err := exec.Command("git", "-C", root, "ls-files", "-z").Output()
	if err != nil {
		t.Skipf("not a checkout of git: %v", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		st, err := os.Lstat(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // to be removed by the next commit
		}
		if err != nil {
			t.Error(err)
		} else if st.Size() > largest {
			t.Errorf("%s has %d bytes", name, st.Size())
		}
	}
}
