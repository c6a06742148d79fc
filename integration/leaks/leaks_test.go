package leaks

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestSinceNamesWhatIsNew(t *testing.T) {
	before := Snapshot{"mount /a (tmpfs)": true, "interface lo": true}
	after := Snapshot{"interface lo": true, "mount /b (tmpfs)": true, "cgroup /x": true}
	if got, want := after.Since(before), []string{"cgroup /x", "mount /b (tmpfs)"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTakeSeesAProcessInNamespacesOfItsOwnAndMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for mount namespaces")
	}
	before, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "leak", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	// The shell answers when it is in its new namespace.
	cmd := exec.Command("unshare", "-m", "sh", "-c", "echo ready; read -r _; : leak-probe")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	after, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	found := strings.Join(after.Since(before), "\n")
	for _, want := range []string{"mount " + dir + " (tmpfs)", "leak-probe"} {
		if !strings.Contains(found, want) {
			t.Errorf("%q is not among\n%s", want, found)
		}
	}
	below, err := MountsBelow(dir)
	if err != nil || !slices.Equal(below, []string{dir}) {
		t.Errorf("mounts below %s: %v %v", dir, below, err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
