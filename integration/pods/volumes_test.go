//go:build integration

package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

func TestVolumes(t *testing.T) {
	n := start(t)
	n.write("objects.yaml", configMap("settings", "color", "red", "size", "1")+"---\n"+secret("keys", "token", "s3cret")+
		"---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: disk}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n")
	host := t.TempDir()
	n.write("p.yaml", spec("p", fmt.Sprintf(`  securityContext: {fsGroup: 4321, runAsUser: 1000}
  volumes:
  - {name: config, configMap: {name: settings, items: [{key: color, path: deep/color, mode: 288}]}}
  - {name: secret, secret: {secretName: keys, defaultMode: 256}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory}}]}}
  - {name: all, projected: {sources: [{configMap: {name: settings}}, {secret: {name: keys}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}}
  - {name: scratch, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 2Mi}}
  - {name: host, hostPath: {path: %s/made, type: DirectoryOrCreate}}
  - {name: disk, persistentVolumeClaim: {claimName: disk}}
  - {name: image, image: {reference: %s}}
  - {name: unused, secret: {secretName: none}}
`, host, images.Tools), `    resources: {limits: {memory: 64Mi}}
    volumeMounts:
    - {name: config, mountPath: /config}
    - {name: secret, mountPath: /secret}
    - {name: down, mountPath: /down}
    - {name: all, mountPath: /all}
    - {name: scratch, mountPath: /scratch}
    - {name: scratch, mountPath: /part, subPath: a/b}
    - {name: memory, mountPath: /memory}
    - {name: host, mountPath: /host, readOnly: true}
    - {name: disk, mountPath: /disk}
    - {name: image, mountPath: /image, readOnly: true}
    - {name: config, mountPath: /one, subPath: deep/color}
`))
	p := n.awaitReady("p")
	for script, want := range map[string]string{
		"cat /config/deep/color /one":                                                  "redred",
		"stat -L -c %a:%g /config/deep/color":                                          "440:4321",
		"cat /secret/token; stat -L -c :%a:%g /secret/token":                           "s3cret:440:4321",
		"cat /down/labels; echo; cat /down/memory":                                     "app=\"web\"\n67108864",
		"cat /all/color /all/token /all/name":                                          "reds3cretp",
		"touch /secret/x 2>/dev/null || echo no":                                       "no",
		"stat -c %a:%g /scratch":                                                       "2777:4321",
		"stat -c %g /part; touch /part/f && ls /scratch/a/b":                           "4321\nf",
		"touch /host/f 2>/dev/null || echo no":                                         "no",
		"touch /disk/f && stat -c %g /disk/f":                                          "4321",
		"ls /image/bin/sh":                                                             "/image/bin/sh",
		"grep -c ' /secret tmpfs ' /proc/mounts":                                       "1",
		"dd if=/dev/zero of=/memory/f bs=1M count=4 2>/dev/null; stat -c %s /memory/f": "2097152",
	} {
		if got, err := n.trySh("p", "main", script); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", script, got, err, want)
		}
	}
	if st, err := os.Stat(host + "/made"); err != nil || st.Mode() != fs.ModeDir|0o755 {
		t.Errorf("%v, %v", st, err)
	}
	n.remove("p.yaml")
	n.awaitGone("p")
	harness.Eventually(t, 10*time.Second, "the pod's folder is gone", func() error {
		if _, err := os.Stat(filepath.Join(n.RootDir, "kubelet/pods", string(p.UID))); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("it is there: %v", err)
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(n.RootDir, "kubelet/claims/default/disk/f")); err != nil {
		t.Errorf("what is in a claim goes with the pod: %v", err)
	}
	if entries, _ := os.ReadDir(filepath.Join(n.RootDir, "kubelet/memory")); len(entries) > 0 {
		t.Errorf("left in memory: %v", entries)
	}
}

// Trap 26: a change comes to running containers at one stroke, and what is gone from the object is gone from the volume. What
// is mounted by subPath stays.
func TestVolumesFollow(t *testing.T) {
	n := start(t)
	n.write("settings.yaml", configMap("settings", "color", "red", "old", "1"))
	n.write("keys.yaml", secret("keys", "token", "one"))
	n.write("p.yaml", spec("p", "  volumes: [{name: config, configMap: {name: settings}}, {name: secret, secret: {secretName: keys}}, {name: optional, configMap: {name: later, optional: true}}]\n",
		"    volumeMounts: [{name: config, mountPath: /config}, {name: secret, mountPath: /secret}, {name: optional, mountPath: /optional}, {name: config, mountPath: /fixed, subPath: color}]\n"))
	p := n.awaitReady("p")
	n.write("settings.yaml", configMap("settings", "color", "blue", "new", "2"))
	n.write("keys.yaml", secret("keys", "token", "two"))
	n.write("later.yaml", configMap("later", "k", "came"))
	n.eventuallySh("p", "main", "cat /config/color; ls /config", "bluecolor\nnew")
	n.eventuallySh("p", "main", "cat /secret/token", "two")
	n.eventuallySh("p", "main", "cat /optional/k", "came")
	if got := n.sh("p", "main", "cat /fixed"); got != "red" {
		t.Errorf("what was mounted by subPath is %s", got)
	}
	n.Restart(t)
	n.write("keys.yaml", secret("keys", "token", "three"))
	n.eventuallySh("p", "main", "cat /secret/token", "three")
	if after := n.awaitReady("p"); status(after, "main").ContainerID != status(p, "main").ContainerID {
		t.Error("the container was restarted")
	}
}

func TestAVolumeThatIsNotThereYet(t *testing.T) {
	n := start(t)
	n.write("p.yaml", spec("p", "  volumes: [{name: config, configMap: {name: later}}]\n", "    volumeMounts: [{name: config, mountPath: /config}]\n"))
	n.await("p", "waiting", func(p *v1.Pod) bool {
		w := status(p, "main").State.Waiting
		return w != nil && w.Reason == "ContainerCreating"
	})
	n.write("later.yaml", configMap("later", "k", "came"))
	n.awaitReady("p")
	if got := n.sh("p", "main", "cat /config/k"); got != "came" {
		t.Errorf("%q", got)
	}
}

// Trap 25: a container that swaps a folder of its volume for links to the host never gets the host's folder as a subPath. Each victim
// is one attempt, which goes one way or the other.
func TestSubPathsThatAreSwapped(t *testing.T) {
	const victims = 12
	n := start(t)
	outside := t.TempDir()
	if err := errors.Join(os.Mkdir(outside+"/sub", 0o755), os.WriteFile(outside+"/sub/host", []byte("host"), 0o644)); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: evil
    image: %[1]s
    command: [sh, -c, "cd /data; mkdir -p dir/sub; while :; do mv dir real; ln -s %[2]s dir; touch begun; rm dir; mv real dir; done"]
    lifecycle: {postStart: {exec: {command: [sh, -c, "until [ -e /data/begun ]; do sleep 0.1; done"]}}}
    volumeMounts: [{name: data, mountPath: /data}]
`, images.Tools, outside)
	for i := range victims {
		text += fmt.Sprintf(`  - name: v%d
    image: %s
    command: [sh, -c, "[ -e /sub/host ] && exit 42; exit 1"]
    volumeMounts: [{name: data, mountPath: /sub, subPath: dir/sub}]
`, i, images.Tools)
	}
	n.write("p.yaml", text)
	n.await("p", "tried with each container", func(p *v1.Pod) bool {
		for i := range victims {
			state := status(p, fmt.Sprintf("v%d", i)).State
			if state.Terminated == nil && (state.Waiting == nil || state.Waiting.Reason != "CreateContainerConfigError") {
				return false
			}
			if state.Terminated != nil && state.Terminated.ExitCode == 42 {
				t.Fatal("the host's folder was mounted")
			}
		}
		return true
	})
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("folders were made on the host: %v", entries)
	}
}

// Trap 27: what a pod has mounted into its own volume, and what links in it lead to, stays whole when the pod goes.
func TestTheEndOfAPodTakesNothingOfOthers(t *testing.T) {
	n := start(t)
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/precious", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.write("p.yaml", spec("p", fmt.Sprintf("  volumes: [{name: data, emptyDir: {}}, {name: host, hostPath: {path: %s}}]\n", outside),
		"    securityContext: {privileged: true}\n    volumeMounts: [{name: data, mountPath: /data}, {name: host, mountPath: /host}]\n"))
	p := n.awaitReady("p")
	n.sh("p", "main", "ln -s "+outside+" /data/link; ln -s /data /data/round; mkdir /data/mounted")
	inside := filepath.Join(n.RootDir, "kubelet/pods", string(p.UID), "volumes/kubernetes.io~empty-dir/data/mounted")
	if err := unix.Mount(outside, inside, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	n.remove("p.yaml")
	n.awaitGone("p")
	if data, err := os.ReadFile(outside + "/precious"); err != nil || string(data) != "x" {
		t.Errorf("%q, %v", data, err)
	}
	if text, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(text), string(p.UID)) {
		t.Error("something is still mounted")
	}
}
