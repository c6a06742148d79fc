//go:build integration

package pods

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/integration/harness"
)

// localVolume is a PersistentVolume that is a folder of the node.
func localVolume(name, path, gi, more string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: PersistentVolume
metadata: {name: %s}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: %sGi}
  local: {path: %s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [self]}]}]}}
%s`, name, gi, path, more)
}

func claimText(name, gi, more string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: %s}\nspec:\n  accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: %sGi}}\n%s", name, gi, more)
}

// usesClaim is a pod that has a claim at /data.
func usesClaim(pod, claim string) string {
	return spec(pod, "  securityContext: {fsGroup: 4321}\n  volumes: [{name: data, persistentVolumeClaim: {claimName: "+claim+"}}]\n",
		"    volumeMounts: [{name: data, mountPath: /data}]\n")
}

// awaitStorage waits for what the status of a claim or a volume says, as "Bound 5Gi".
func (n *node) awaitStorage(path, want string) {
	n.t.Helper()
	harness.Eventually(n.t, 20*time.Second, path+" is "+want, func() error {
		resp, err := n.api().Get("http://node/api/v1/" + path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var o struct {
			Spec   struct{ VolumeName string }
			Status struct {
				Phase    string
				Capacity map[string]string
			}
		}
		if resp.StatusCode != http.StatusOK {
			o.Status.Phase = resp.Status
		} else if err := json.NewDecoder(resp.Body).Decode(&o); err != nil {
			return err
		}
		if got := strings.TrimSpace(o.Status.Phase + " " + o.Status.Capacity["storage"]); got != want {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
}

const defaultClaims = "namespaces/default/persistentvolumeclaims/"

// A local volume from the claim to the container, over a restart of the daemon, given back and taken again.
func TestPersistentVolumes(t *testing.T) {
	n := start(t)
	dir := filepath.Join(t.TempDir(), "disk")
	n.write("v.yaml", localVolume("disk", dir, "5", "  storageClassName: local\n"))
	n.write("claims.yaml", claimText("data", "2", "  storageClassName: local\n")+claimText("more", "1", "  storageClassName: local\n"))
	n.write("p.yaml", usesClaim("p", "data"))
	n.awaitStorage(defaultClaims+"data", "Bound 5Gi")
	n.awaitStorage(defaultClaims+"more", "Pending")
	n.awaitStorage("persistentvolumes/disk", "Bound")

	// What its owner has not prepared is not made; who waits for it gets it.
	harness.Eventually(t, 20*time.Second, "an event says what is missing", func() error {
		if text, want := n.berth().ok(t, "events"), `MountVolume.SetUp failed for volume "data" : path "`+dir+`" does not exist`; !strings.Contains(text, want) {
			return fmt.Errorf("there are only\n%s", text)
		}
		return nil
	})
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := n.awaitReady("p")
	if got := n.sh("p", "main", "echo hello > /data/f; stat -c %g /data/f"); got != "4321" {
		t.Errorf("its group is %s", got)
	}
	if text, err := os.ReadFile(dir + "/f"); err != nil || string(text) != "hello\n" {
		t.Errorf("%q, %v", text, err)
	}
	for _, u := range []tool{n.berth(), n.kubectl()} {
		wants(t, u.name, u.ok(t, "get", "pv", "-o", "wide"),
			`NAME +CAPACITY +ACCESS MODES +RECLAIM POLICY +STATUS +CLAIM +STORAGECLASS +VOLUMEATTRIBUTESCLASS +REASON +AGE +VOLUMEMODE`,
			`disk +5Gi +RWO +Retain +Bound +default/data +local +<unset> +\S+ +Filesystem`)
		wants(t, u.name, u.ok(t, "get", "pvc"), `data +Bound +disk +5Gi +RWO +local`, `more +Pending +local`)
		wants(t, u.name, u.ok(t, "describe", "pv", "disk"), `Claim: +default/data`, `Term 0: +kubernetes.io/hostname in \[self\]`, `Type: +LocalVolume`, `Path: +`+dir)
		wants(t, u.name, u.ok(t, "describe", "pvc", "more"), `FailedBinding.*no persistent volumes available for this claim in storage class "local"`)
	}

	n.Restart(t)
	n.awaitReady("p")
	n.same(p, "a restart of the daemon")

	// Given back, it is nobody else's; a claim of the same name has it again, with what is in it.
	n.remove("p.yaml")
	n.awaitGone("p")
	n.write("claims.yaml", claimText("more", "1", "  storageClassName: local\n"))
	n.awaitStorage("persistentvolumes/disk", "Released")
	n.Restart(t)
	n.write("p.yaml", usesClaim("p", "data"))
	n.awaitStorage(defaultClaims+"more", "Pending")
	n.write("claims.yaml", claimText("more", "1", "  storageClassName: local\n")+claimText("data", "2", "  storageClassName: local\n"))
	n.awaitReady("p")
	if got := n.sh("p", "main", "cat /data/f"); got != "hello" {
		t.Errorf("it has %q", got)
	}
	// It is not made larger, nor is anything else changed, by asking for more.
	n.write("claims.yaml", claimText("more", "1", "  storageClassName: local\n")+claimText("data", "3", "  storageClassName: local\n"))
	n.awaitLog("only dynamically provisioned pvc can be resized")
	n.remove("p.yaml")
	n.awaitGone("p")
	n.remove("claims.yaml")
	n.awaitStorage(defaultClaims+"data", "404 Not Found")
	n.remove("v.yaml")
	n.awaitStorage("persistentvolumes/disk", "404 Not Found")
	if text, err := os.ReadFile(dir + "/f"); err != nil || string(text) != "hello\n" {
		t.Errorf("after the end of all: %q, %v", text, err)
	}
	if text, err := os.ReadFile(filepath.Join(n.RootDir, "kubelet", "bindings.json")); err != nil || string(text) != "{}" {
		t.Errorf("what is left of the binding: %s, %v", text, err)
	}
	if left, _ := os.ReadDir(filepath.Join(n.RootDir, "kubelet", "claims")); len(left) > 0 {
		t.Errorf("folders of claims: %v", left)
	}
}

// Applied, in whatever order they stand, and taken back by name.
func TestAppliedVolumes(t *testing.T) {
	n := start(t)
	dir := t.TempDir()
	hostPath := "---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {name: host}\nspec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, claimRef: {namespace: default, name: c}, hostPath: {path: " + dir + "/made, type: DirectoryOrCreate}}\n"
	n.apply(usesClaim("p", "c") + claimText("c", "1", "") + hostPath)
	p := n.awaitReady("p")
	n.sh("p", "main", "touch /data/f")
	if _, err := os.Stat(dir + "/made/f"); err != nil {
		t.Error(err)
	}
	wants(t, "get pv", n.berth().ok(t, "get", "pv/host", "-o", "jsonpath={.status.phase} {.spec.claimRef.name}"), `^Bound c$`)
	// Taken away under its claim, it stays with the pod that runs, and is the claim's again when it comes back.
	n.berth().ok(t, "delete", "pv", "host")
	n.awaitStorage(defaultClaims+"c", "Lost")
	n.Restart(t)
	n.sh("p", "main", "ls /data/f")
	n.apply(hostPath)
	n.awaitStorage(defaultClaims+"c", "Bound 1Gi")
	n.same(p, "the return of its volume")
	n.berth().ok(t, "delete", "pod", "p")
	n.berth().ok(t, "delete", "pvc", "c")
	n.awaitStorage("persistentvolumes/host", "Released")
	wants(t, "delete", n.berth().ok(t, "delete", "pv", "host"), `persistentvolume "host" deleted`)
	n.awaitStorage("persistentvolumes/host", "404 Not Found")
	if _, err := os.Stat(dir + "/made/f"); err != nil {
		t.Errorf("with the volume went what is in it: %v", err)
	}
}

// A claim that is a folder has what it asks for, may ask for more while a pod uses it, and not for less.
func TestAClaimGrows(t *testing.T) {
	n := start(t)
	n.apply(claimText("c", "2", "") + "---\n" + usesClaim("p", "c"))
	p := n.awaitReady("p")
	n.awaitStorage(defaultClaims+"c", "Bound 2Gi")
	n.apply(claimText("c", "3", ""))
	n.awaitStorage(defaultClaims+"c", "Bound 3Gi")
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(claimText("c", "1", "")), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := n.berth().run(t, "", "apply", "-f", file); code == 0 || !strings.Contains(errOut, "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity") {
		t.Errorf("%d: %s", code, errOut)
	}
	n.awaitStorage(defaultClaims+"c", "Bound 3Gi")
	n.sh("p", "main", "touch /data/f")
	n.same(p, "growth of its claim")
}
