package binding

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/kubelet/manifest"
	"github.com/berth-node/berth/kubelet/source"
)

// node is a binder with what is declared around it.
type node struct {
	t        *testing.T
	file     string
	declared []source.Entry
	folders  map[string]bool
	ready    chan struct{}
	events   []string
	uids     int
	*Binder
}

func newNode(t *testing.T) *node {
	n := &node{t: t, file: filepath.Join(t.TempDir(), "bindings.json"), folders: map[string]bool{}, ready: make(chan struct{})}
	close(n.ready)
	n.restart()
	return n
}

// restart begins anew with what is on disk.
func (n *node) restart() {
	n.Binder = Open(Config{
		File: n.file, Source: n, Log: slog.New(slog.DiscardHandler),
		HasFolder: func(_, name string) bool { return n.folders[name] },
		Node:      &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here", Labels: map[string]string{v1.LabelHostname: "here"}}},
		Event: func(about *v1.ObjectReference, eventType, reason, message string) {
			n.events = append(n.events, fmt.Sprintf("%s %s %s: %s", about.Name, eventType, reason, message))
		},
	})
}

func (n *node) List(kind manifest.Kind) (all []source.Entry) {
	for _, e := range n.declared {
		if e.Kind == kind {
			all = append(all, e)
		}
	}
	return all
}

func (n *node) Ready() <-chan struct{} { return n.ready }

// declare adds objects, or changes those that are declared; a new one gets a UID.
func (n *node) declare(text string) {
	n.t.Helper()
	objects, err := manifest.Decode("m.yaml", []byte(text))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, o := range objects {
		e := source.Entry{Object: o}
		i := slices.IndexFunc(n.declared, func(e source.Entry) bool { return e.Key == o.Key })
		if i >= 0 {
			if err := n.Vet(n.declared[i].Object, o); err != nil {
				n.t.Fatal(err)
			}
			e.UID, e.Created = n.declared[i].UID, n.declared[i].Created
			n.declared = slices.Delete(n.declared, i, i+1)
		} else {
			n.uids++
			e.UID, e.Created = types.UID(fmt.Sprint("uid-", n.uids)), time.Unix(int64(n.uids), 0)
		}
		if e.Claim != nil {
			e.Claim.UID, e.Claim.CreationTimestamp = e.UID, metav1.NewTime(e.Created)
		} else {
			e.Volume.UID = e.UID
		}
		n.declared = append(n.declared, e)
	}
}

func (n *node) withdraw(name string) {
	n.declared = slices.DeleteFunc(n.declared, func(e source.Entry) bool { return e.Name == name })
}

// now is each claim with its phase and volume, and each volume with its phase and claim.
func (n *node) now() string {
	claims, volumes := n.Look()
	var all []string
	for _, c := range claims {
		name := c.Spec.VolumeName
		if strings.HasPrefix(name, "pvc-") {
			name = "folder"
		}
		storage := c.Status.Capacity[v1.ResourceStorage]
		all = append(all, strings.TrimRight(fmt.Sprintf("%s %s %s %s", c.Name, c.Status.Phase, name, &storage), " 0"))
	}
	for _, v := range volumes {
		ref := ""
		if v.Spec.ClaimRef != nil {
			ref = v.Spec.ClaimRef.Name
		}
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s", v.Name, v.Status.Phase, ref)))
	}
	return strings.Join(all, ", ")
}

func (n *node) is(want string) {
	n.t.Helper()
	if got := n.now(); got != want {
		n.t.Errorf("it is %q, want %q; %q", got, want, n.events)
	}
}

func claim(name, gi, more string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: %s}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: %sGi}}%s}\n", name, gi, more)
}

func volume(name, gi, more string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {name: %s, labels: {of: %s}}\nspec: {accessModes: [ReadWriteOnce], capacity: {storage: %sGi}, hostPath: {path: /x}%s}\n", name, name, gi, more)
}

func affinity(host string) string {
	return ", nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [" + host + "]}]}]}}"
}

// What a claim gets, when all is declared at once.
func TestChoice(t *testing.T) {
	for _, tt := range []struct{ name, declared, want, event string }{
		{"nothing there", claim("c", "1", ""), "c Bound folder 1Gi", ""},
		{"a class that no volume has", claim("c", "1", ", storageClassName: fast") + volume("v", "1", ""), "c Bound folder 1Gi, v Available", ""},
		{"the smallest", volume("big", "9", "") + volume("fit", "2", "") + volume("small", "1", "") + claim("c", "2", ""), "c Bound fit 2Gi, big Available, fit Bound c, small Available", ""},
		{"of two the first name", volume("b", "2", "") + volume("a", "2", "") + claim("c", "1", ""), "c Bound a 2Gi, a Bound c, b Available", ""},
		{"the class", volume("slow", "1", "") + volume("quick", "5", ", storageClassName: fast") + claim("c", "1", ", storageClassName: fast"),
			"c Bound quick 5Gi, quick Bound c, slow Available", ""},
		{"too small a volume of the class", volume("v", "1", ", storageClassName: fast") + claim("c", "2", ", storageClassName: fast"), "c Pending, v Available",
			`c Warning FailedBinding: no persistent volumes available for this claim in storage class "fast"`},
		{"no class in so many words", volume("v", "1", "") + claim("c", "2", `, storageClassName: ""`), "c Pending, v Available",
			"c Normal FailedBinding: no persistent volumes available for this claim and no storage class is set"},
		{"modes", volume("v", "1", "") + strings.Replace(claim("c", "1", ""), "ReadWriteOnce", "ReadWriteMany", 1), "c Bound folder 1Gi, v Available", ""},
		{"labels", volume("a", "1", "") + volume("b", "2", "") + claim("c", "1", ", selector: {matchLabels: {of: b}}"), "c Bound b 2Gi, a Available, b Bound c", ""},
		{"labels that nothing has", volume("a", "1", "") + claim("c", "1", ", selector: {matchLabels: {of: b}}"), "c Pending, a Available",
			"c Normal FailedBinding: no persistent volumes available for this claim and no storage class is set"},
		{"another node's", volume("v", "1", affinity("there")) + claim("c", "1", ""), "c Bound folder 1Gi, v Available", ""},
		{"this node's", volume("v", "1", affinity("here")) + claim("c", "1", ""), "c Bound v 1Gi, v Bound c", ""},
		{"by name", volume("a", "1", "") + volume("b", "2", "") + claim("c", "1", ", volumeName: b"), "c Bound b 2Gi, a Available, b Bound c", ""},
		{"by a name that is not there", claim("c", "1", ", volumeName: b"), "c Pending b", `c Warning FailedBinding: persistentvolume "b" not found`},
		{"by name, too small", volume("b", "1", "") + claim("c", "2", ", volumeName: b"), "c Pending b, b Available",
			`c Warning VolumeMismatch: Cannot bind to requested volume "b": requested PV is too small`},
		{"by name, another class", volume("b", "1", ", storageClassName: x") + claim("c", "1", ", volumeName: b"), "c Pending b, b Available",
			`c Warning VolumeMismatch: Cannot bind to requested volume "b": storageClassName does not match`},
		{"by name, modes", volume("b", "1", "") + strings.Replace(claim("c", "1", ", volumeName: b"), "ReadWriteOnce", "ReadWriteMany", 1), "c Pending b, b Available",
			`c Warning VolumeMismatch: Cannot bind to requested volume "b": incompatible accessMode`},
		{"reserved", volume("a", "1", "") + volume("b", "9", ", claimRef: {namespace: default, name: c}") + claim("c", "1", ""), "c Bound b 9Gi, a Available, b Bound c", ""},
		{"reserved for another", volume("b", "9", ", claimRef: {namespace: other, name: c}") + claim("c", "1", ""), "c Bound folder 1Gi, b Available c", ""},
		{"reserved for another, and named", volume("b", "9", ", claimRef: {namespace: other, name: c}") + claim("c", "1", ", volumeName: b"), "c Pending b, b Available c",
			`c Warning FailedBinding: volume "b" already bound to a different claim.`},
		{"reserved and too small", volume("b", "1", ", claimRef: {namespace: default, name: c}") + claim("c", "2", ""), "c Pending, b Available c",
			"c Warning FailedBinding: the volume that is reserved for this claim does not satisfy it"},
		{"first come", volume("v", "1", "") + claim("c", "1", "") + claim("b", "1", ""), "c Bound v 1Gi, b Bound folder 1Gi, v Bound c", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.declare(tt.declared)
			n.is(tt.want)
			n.is(tt.want)
			if got := strings.Join(n.events, "\n"); got != tt.event {
				t.Errorf("events: %q, want %q", got, tt.event)
			}
			n.restart()
			n.is(tt.want)
		})
	}
}

// A claim keeps what it has, and a volume is given to nobody else.
func TestKept(t *testing.T) {
	n := newNode(t)
	n.declare(claim("c", "2", "") + volume("big", "9", ""))
	n.is("c Bound big 9Gi, big Bound c")
	n.declare(volume("fit", "2", "")) // a better one
	n.restart()
	n.is("c Bound big 9Gi, big Bound c, fit Available")

	n.withdraw("c")
	n.is("big Released c, fit Available")
	n.restart()
	n.declare(claim("other", "5", ""))
	n.is("other Bound folder 5Gi, big Released c, fit Available")
	n.declare(claim("c", "2", "")) // it is another one, of the same name: as with a folder
	n.is("other Bound folder 5Gi, c Bound big 9Gi, big Bound c, fit Available")
	n.withdraw("c")
	n.declare(claim("c", "2", ", selector: {matchLabels: {of: fit}}")) // which does not want it any more
	n.is("other Bound folder 5Gi, c Bound fit 2Gi, big Released c, fit Bound c")

	// Declared anew, a volume can be had again.
	n.withdraw("big")
	n.is("other Bound folder 5Gi, c Bound fit 2Gi, fit Bound c")
	n.declare(volume("big", "9", ""))
	n.is("other Bound big 9Gi, c Bound fit 2Gi, big Bound other, fit Bound c")
}

func TestAVolumeThatGoes(t *testing.T) {
	n := newNode(t)
	n.declare(claim("c", "1", "") + volume("v", "1", ""))
	n.is("c Bound v 1Gi, v Bound c")
	n.withdraw("v")
	n.is("c Lost v")
	if _, err := n.Volume("default", "c"); err == nil || !strings.Contains(err.Error(), "error processing PVC default/c: PVC is not bound") {
		t.Error(err)
	}
	n.restart()
	n.declare(volume("v", "1", ""))
	n.is("c Bound v 1Gi, v Bound c")
	// Both declared anew at once, as when the records of their file were lost.
	n.withdraw("v")
	n.withdraw("c")
	n.declare(volume("a", "1", "") + volume("v", "1", "") + claim("c", "1", ""))
	n.is("c Bound v 1Gi, a Available, v Bound c")
}

// Before everybody who declares has been heard, nothing is forgotten, nor chosen in place of what may yet come.
func TestNotHeardYet(t *testing.T) {
	n := newNode(t)
	n.declare(claim("c", "1", "") + volume("v", "1", ""))
	n.is("c Bound v 1Gi, v Bound c")
	n.ready = make(chan struct{})
	n.withdraw("v")
	n.withdraw("c")
	n.restart()
	n.is("")
	n.declare(claim("c", "1", ""))
	n.is("c Pending")
	n.declare(volume("a", "1", "") + volume("v", "1", ""))
	close(n.ready)
	n.is("c Bound v 1Gi, a Available, v Bound c")
}

// A folder with data in it stays the claim's, whatever volumes come.
func TestFolder(t *testing.T) {
	n := newNode(t)
	n.declare(claim("c", "1", ""))
	if v, err := n.Volume("default", "c"); v != nil || err != nil {
		t.Errorf("%v, %v", v, err)
	}
	n.declare(volume("v", "1", "") + volume("r", "1", ", claimRef: {namespace: default, name: c}"))
	n.is("c Bound folder 1Gi, r Available c, v Available")
	n.folders["c"] = true // the pod has made it
	n.restart()
	n.is("c Bound folder 1Gi, r Available c, v Available")
	n.declare(claim("c", "3", "")) // it may grow
	n.is("c Bound folder 3Gi, r Available c, v Available")
	// One that nobody has used can still have a volume.
	n.declare(claim("late", "5", ""))
	n.is("c Bound folder 3Gi, late Bound folder 5Gi, r Available c, v Available")
	n.declare(volume("w", "5", ""))
	n.is("c Bound folder 3Gi, late Bound w 5Gi, r Available c, v Available, w Bound late")
	// One that is declared anew, and names a volume, means it.
	n.withdraw("c")
	n.declare(claim("c", "1", ", volumeName: v"))
	n.is("late Bound w 5Gi, c Bound v 1Gi, r Available c, v Bound c, w Bound late")
}

func TestVet(t *testing.T) {
	n := newNode(t)
	n.declare(claim("c", "1", "") + volume("v", "5", "") + claim("f", "1", ", storageClassName: x"))
	n.folders["f"] = true
	n.is("c Bound v 5Gi, f Bound folder 1Gi, v Bound c")
	for _, tt := range []struct{ is, want string }{
		{claim("c", "1", ", volumeName: v"), ""},
		{claim("c", "1", ", volumeName: w"), "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"},
		{claim("c", "2", ""), `persistentvolumeclaims "c" is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize`},
		{claim("f", "2", ", storageClassName: x"), ""},
		{claim("f", "2", ", storageClassName: x, volumeName: v"), "spec is immutable after creation"},
	} {
		objects, err := manifest.Decode("m.yaml", []byte(tt.is))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(n.declared, func(e source.Entry) bool { return e.Key == objects[0].Key })
		err = n.Vet(n.declared[i].Object, objects[0])
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.is, err, tt.want)
		}
	}
}

func TestANodeThatAVolumeIsNotFor(t *testing.T) {
	n := newNode(t)
	n.declare(volume("v", "1", affinity("there")) + claim("c", "1", ", volumeName: v"))
	n.is("c Bound v 1Gi, v Bound c")
	if _, err := n.Volume("default", "c"); err == nil || err.Error() != `MountVolume.NodeAffinity check failed for volume "v" : no matching NodeSelectorTerms` {
		t.Error(err)
	}
}

// Damaged records give nobody's volume to another claim, and are not written over.
func TestDamage(t *testing.T) {
	n := newNode(t)
	n.declare(claim("c", "1", "") + volume("v", "1", ""))
	n.is("c Bound v 1Gi, v Bound c")
	if err := os.WriteFile(n.file, []byte(`{"v":`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.declare(claim("d", "1", ", volumeName: w") + volume("w", "1", "") + claim("f", "1", ""))
	n.folders["f"] = true
	n.is("c Pending, d Bound w 1Gi, f Bound folder 1Gi, v Available, w Bound d")
	if want := "c Warning FailedBinding: what claims are bound to cannot be read any more: name the volume, or remove " + n.file + " and start berth again"; len(n.events) == 0 || n.events[0] != want {
		t.Errorf("%q", n.events)
	}
	if text, err := os.ReadFile(n.file); err != nil || string(text) != `{"v":` {
		t.Errorf("%s, %v", text, err)
	}
}

// What cannot be written down is not told anybody.
func TestAFullDisk(t *testing.T) {
	n := newNode(t)
	n.File = filepath.Join(filepath.Dir(n.file), "none", "bindings.json")
	n.declare(claim("c", "1", ", volumeName: v") + volume("v", "1", ""))
	if v, err := n.Volume("default", "c"); err == nil {
		t.Errorf("it is %v", v)
	}
	n.is("c Pending v, v Available")
	n.File = n.file
	if v, err := n.Volume("default", "c"); err != nil || v == nil || v.Name != "v" {
		t.Errorf("%v, %v", v, err)
	}
}
