package manifest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"github.com/berth-node/berth/internal/errdefs"
)

const webPod = `apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: app
    image: registry.example/web:1
`

func decodeOne(t *testing.T, text string) Object {
	t.Helper()
	objects, err := Decode("m.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 1 {
		t.Fatalf("%d objects, want one", len(objects))
	}
	return objects[0]
}

func TestDefaultsAreUpstreams(t *testing.T) {
	o := decodeOne(t, webPod)
	if want := (Key{Pod, "default", "web"}); o.Key != want || o.Line != 1 || o.File != "m.yaml" {
		t.Errorf("%+v in %s:%d, want %v in m.yaml:1", o.Key, o.File, o.Line, want)
	}
	spec, c := o.Pod.Spec, o.Pod.Spec.Containers[0]
	for what, pair := range map[string][2]any{
		"restartPolicy":                 {spec.RestartPolicy, v1.RestartPolicyAlways},
		"terminationGracePeriodSeconds": {*spec.TerminationGracePeriodSeconds, int64(30)},
		"dnsPolicy":                     {spec.DNSPolicy, v1.DNSClusterFirst},
		"enableServiceLinks":            {*spec.EnableServiceLinks, true},
		"imagePullPolicy":               {c.ImagePullPolicy, v1.PullIfNotPresent},
		"terminationMessagePath":        {c.TerminationMessagePath, "/dev/termination-log"},
		"namespace":                     {o.Pod.Namespace, "default"},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s is %v, want %v", what, pair[0], pair[1])
		}
	}
}

func TestKindsListsAndDocuments(t *testing.T) {
	const text = `# what runs here
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf, namespace: shop}
data:
  empty:
  mode: "0644"
---
# nothing
--- # more of it
apiVersion: v1
kind: List
metadata: {}
items:
- apiVersion: v1
  kind: Secret
  metadata: {name: key, namespace: shop}
  stringData: {token: abc}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata: {name: data, namespace: shop}
  spec:
    accessModes: [ReadWriteOnce]
    resources: {requests: {storage: 1Gi}}
--- {apiVersion: v1, kind: ConfigMap, metadata: {name: flow}}
`
	objects, err := Decode("all.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		got = append(got, fmt.Sprintf("%s in %d", o.Key, o.Line))
	}
	want := []string{"ConfigMap shop/conf in 3", "Secret shop/key in 16", "PersistentVolumeClaim shop/data in 20", "ConfigMap default/flow in 26"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if s := objects[1].Secret; string(s.Data["token"]) != "abc" || s.StringData != nil || s.Type != v1.SecretTypeOpaque {
		t.Errorf("secret: %+v", s)
	}
	if c := objects[0].ConfigMap; c.Data["empty"] != "" || c.Data["mode"] != "0644" {
		t.Errorf("configmap: %+v", c.Data)
	}
}

func TestJSON(t *testing.T) {
	text := "{\n\t\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\",\n\t\"metadata\": {\"name\": \"a\"},\n\t\"data\": {\"smile\": \"\\ud83d\\ude00\"}\n}\n" +
		"{\"apiVersion\": \"v1\",\n\"kind\": \"ConfigMap\",\n\"metadata\": {\"name\": \"b\"}}"
	objects, err := Decode("c.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 2 || objects[0].ConfigMap.Data["smile"] != "😀" || objects[0].Line != 1 || objects[1].Line != 6 {
		t.Errorf("%+v", objects)
	}
	_, err = Decode("c.json", []byte("{\n\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\",\n\"metadata\": {\"name\": \"a\"},\n\"dota\": {}, \n\"metadata\": {\"name\": \"b\"}}"))
	if want := "c.json:4: dota: unknown field\nc.json:5: metadata: is there twice"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// Each fault is at the line where somebody has to change something.
func TestFaults(t *testing.T) {
	inContainer := func(lines string) string { return webPod + lines }
	for name, c := range map[string]struct{ text, want string }{
		"unknown field":        {inContainer("    imagePullPolice: Always\n"), "m.yaml:9: spec.containers[0].imagePullPolice: unknown field"},
		"other case":           {inContainer("    imagepullpolicy: Always\n"), "m.yaml:9: spec.containers[0].imagepullpolicy: unknown field; it is written imagePullPolicy"},
		"misplaced":            {webPod + "  livenessProbe: {exec: {command: [a]}}\n", "m.yaml:9: spec.livenessProbe: unknown field; it belongs to spec.containers[] or spec.ephemeralContainers[] or spec.initContainers[]"},
		"twice":                {inContainer("    image: b\n"), "m.yaml:9: spec.containers[0].image: is there twice"},
		"refused":              {webPod + "  schedulingGates:\n  - name: x\n", "m.yaml:9: spec.schedulingGates: not supported: there is nothing here that would lift the gate, and the pod would never run"},
		"number as string":     {inContainer("    env:\n    - name: A\n      value: 8080\n"), "m.yaml:11: spec.containers[0].env[0].value: want a string (in quotes), not 8080"},
		"yes as string":        {inContainer("    env:\n    - name: A\n      value: yes\n"), "m.yaml:11: spec.containers[0].env[0].value: want a string (in quotes), not true"},
		"string as number":     {inContainer("    ports:\n    - containerPort: \"80\"\n"), `m.yaml:10: spec.containers[0].ports[0].containerPort: want a whole number, not "80"`},
		"too large":            {inContainer("    ports:\n    - containerPort: 3000000000\n"), `m.yaml:10: spec.containers[0].ports[0].containerPort: want a whole number, not 3000000000`},
		"bad quantity":         {inContainer("    resources: {limits: {cpu: lots}}\n"), `m.yaml:9: spec.containers[0].resources.limits[cpu]: want a Quantity, not "lots"`},
		"no list":              {inContainer("    args: hello\n"), `m.yaml:9: spec.containers[0].args: want a list, not "hello"`},
		"upstream's":           {inContainer("    imagePullPolicy: Perhaps\n"), `m.yaml:9: spec.containers[0].imagePullPolicy: Unsupported value: "Perhaps": supported values: "Always", "IfNotPresent", "Never"`},
		"upstream's, missing":  {strings.ReplaceAll(webPod, "    image: registry.example/web:1\n", ""), "m.yaml:7: spec.containers[0].image: Required value"},
		"upstream's, in a map": {strings.Replace(webPod, "  name: web\n", "  name: web\n  labels:\n    ok: a\n    bad: '-'\n", 1), "m.yaml:5: metadata.labels: Invalid value: \"-\": a valid label"},
		"no name":              {"apiVersion: v1\nkind: ConfigMap\n", "m.yaml:1: metadata.name: Required value: name or generateName is required"},
		"later":                {"apiVersion: apps/v1\nkind: Deployment\n", "m.yaml:2: kind: a Deployment is not run by this version of berth; it takes Pod, ConfigMap, Secret, PersistentVolumeClaim and PersistentVolume: declare the pod itself"},
		"other kind":           {"apiVersion: v1\nkind: Namespace\n", "m.yaml:2: kind: a Namespace means nothing to a node by itself, which takes Pod, ConfigMap, Secret, PersistentVolumeClaim and PersistentVolume"},
		"other version":        {"apiVersion: v2\nkind: Pod\n", `m.yaml:1: apiVersion: want v1, which is the version of every Pod, not "v2"`},
		"no kind":              {"apiVersion: v1\n", "m.yaml:1: kind: want the kind of the object: Pod, ConfigMap, Secret, PersistentVolumeClaim and PersistentVolume"},
		"no object":            {"\n- a\n", "m.yaml:2: want an object with apiVersion and kind, not a list"},
		"syntax":               {webPod + "\n---\na: b: c\n", "m.yaml:11: mapping values are not allowed in this context"},
		"tab":                  {"a:\n\tb: c\n", "m.yaml:2: found character that cannot start any token"},
		"after the end":        {webPod + "...\nkind: Pod\n", "m.yaml:9: did not find expected <document start>"},
		"not UTF-8":            {"a: \xff", "m.yaml: it is not text in UTF-8"},
		"declared twice":       {webPod + "---\n" + webPod, "m.yaml:10: Pod default/web is declared in line 1 already"},
		"secret not base64":    {"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  a: hi!\n", "m.yaml:5: data[a]: want data in base64; as it is, it may be in stringData of a Secret, or data of a ConfigMap"},
		"windows":              {webPod + "  os: {name: windows}\n", `m.yaml:9: spec.os.name: Unsupported value: "windows": supported values: "linux"`},
		"priority class":       {webPod + "  priorityClassName: high\n", `m.yaml:9: spec.priorityClassName: Invalid value: "high": there are only system-cluster-critical and system-node-critical: any other priority is said by spec.priority`},
		"apparmor annotation":  {strings.Replace(webPod, "  name: web\n", "  name: web\n  annotations:\n    container.apparmor.security.beta.kubernetes.io/app: unconfined\n", 1), "m.yaml:6: metadata.annotations[container.apparmor.security.beta.kubernetes.io/app]: Forbidden: not supported: use securityContext.appArmorProfile"},
		"block claim":          {"apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: c}\nspec:\n  accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: 1Gi}}\n  volumeMode: Block\n", `m.yaml:7: spec.volumeMode: Unsupported value: "Block": supported values: "Filesystem"`},
		"null in a list":       {inContainer("    args: [null]\n"), "m.yaml:9: spec.containers[0].args[0]: want a string (in quotes), not nothing"},
		"merged":               {"x: &x {hostNetwork: 1}\n", "m.yaml:1: kind: want the kind"},
	} {
		t.Run(name, func(t *testing.T) {
			objects, err := Decode("m.yaml", []byte(c.text))
			if err == nil {
				t.Fatalf("no fault; want %s\n%+v", c.want, objects)
			}
			if !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if !errors.Is(err, errdefs.ErrInvalidArgument) || len(Faults(fmt.Errorf("wrapped: %w", err))) == 0 {
				t.Errorf("%v is not a fault", err)
			}
		})
	}
}

func TestAllFaultsOfAllDocumentsAreTold(t *testing.T) {
	_, err := Decode("m.yaml", []byte("kind: Service\napiVersion: v1\n---\na: [\n---\n"+webPod+"    a: 1\n    b: 2\n"))
	var lines []int
	for _, f := range Faults(err) {
		lines = append(lines, f.Line)
	}
	if want := []int{1, 4, 14, 15}; !slices.Equal(lines, want) {
		t.Errorf("faults in lines %v, want %v:\n%v", lines, want, err)
	}
}

// What YAML makes of anchors and merges stands where it was written.
func TestAnchors(t *testing.T) {
	const text = `apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - &app
    name: app
    image: a
    imagePullPolicy: Nope
  - <<: *app
    name: other
    command: &c [a]
    args: *c
`
	_, err := Decode("m.yaml", []byte(text))
	faults := Faults(err)
	if len(faults) != 2 || faults[0].Line != 9 || faults[1].Line != 9 {
		t.Errorf("%v", err)
	}
}

func TestIgnoredFieldsAreWarnings(t *testing.T) {
	o := decodeOne(t, strings.Replace(webPod, "  name: web\n", "  name: web\n  uid: u\n  creationTimestamp: null\n", 1)+
		"  nodeName: a\n  nodeSelector: {disk: ssd}\n  tolerations: []\n  hostname: w\n    # end\nstatus: {phase: Running, conditions: []}\n")
	want := []string{
		"m.yaml:5: metadata.uid: ignored: the node sets it",
		"m.yaml:11: spec.nodeName: ignored: every pod here runs on this node",
		"m.yaml:12: spec.nodeSelector: ignored: every pod here runs on this node",
		"m.yaml:16: status: ignored: the node sets it",
	}
	if !slices.Equal(o.Warnings, want) {
		t.Errorf("got  %q\nwant %q", o.Warnings, want)
	}
	if p := o.Pod; p.UID != "" || p.Spec.NodeName != "" || p.Status.Phase != "" || p.Spec.NodeSelector["disk"] != "ssd" || strings.Contains(string(o.Source), "uid") {
		t.Errorf("%+v from %s", p, o.Source)
	}
}

// The same declaration has the same hash, whatever it looks like and whatever defaults are made of it; so an upgrade of berth
// restarts nothing (kubernetes/kubernetes#67537).
func TestHash(t *testing.T) {
	first := decodeOne(t, webPod)
	if len(first.Hash) != 32 {
		t.Errorf("hash %q, want 32 digits", first.Hash)
	}
	same := decodeOne(t, "# moved\n{kind: Pod, apiVersion: v1, spec: {containers: [{image: 'registry.example/web:1', name: app}]}, metadata: {name: web, resourceVersion: '7'}}")
	if same.Hash != first.Hash {
		t.Error("the hash changes with the form of the document")
	}
	if other := decodeOne(t, strings.Replace(webPod, "web:1", "web:2", 1)); other.Hash == first.Hash {
		t.Error("the hash does not change with the image")
	}
	if strings.Contains(string(first.Source), "restartPolicy") {
		t.Error("the source has defaults, which may be others in the next version")
	}
}

func TestRestore(t *testing.T) {
	was := decodeOne(t, webPod)
	is, err := Restore(was.Kind, was.Source)
	if err != nil {
		t.Fatal(err)
	}
	if is.Key != was.Key || is.Hash != was.Hash || !reflect.DeepEqual(is.Pod, was.Pod) {
		t.Errorf("restored %+v\nwas %+v", is, was)
	}
	// What another version accepted is no fault.
	if _, err := Restore(Pod, []byte(`{"metadata":{"name":"a"},"spec":{"schedulingGates":[{"name":"x"}],"fromTomorrow":1}}`)); err != nil {
		t.Error(err)
	}
	for _, damaged := range []string{"", "{", "[]", `{"spec":{"containers":7}}`, "{}"} {
		if o, err := Restore(Pod, []byte(damaged)); err == nil {
			t.Errorf("%q was restored as %+v", damaged, o)
		}
	}
}

// What upstream drops without a word, since it is switched off, is a fault.
func TestSwitchedOffFeaturesAreRefused(t *testing.T) {
	stop := webPod + "    lifecycle:\n      stopSignal: SIGUSR1\n  os: {name: linux}\n"
	if o := decodeOne(t, stop); o.Pod.Spec.Containers[0].Lifecycle.StopSignal == nil {
		t.Error("the stop signal is lost")
	}
	gate := utilfeature.DefaultMutableFeatureGate
	if err := gate.SetFromMap(map[string]bool{"ContainerStopSignals": false}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = gate.SetFromMap(map[string]bool{"ContainerStopSignals": true}) }()
	_, err := Decode("m.yaml", []byte(stop))
	if want := "m.yaml:9: spec.containers[0].lifecycle: Forbidden: not supported: it is an alpha feature"; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// A PersistentVolume is the node's, and is one that a node can honour by itself.
func TestVolume(t *testing.T) {
	const text = `apiVersion: v1
kind: PersistentVolume
metadata: {name: v}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  local: {path: /data}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}
`
	o := decodeOne(t, text)
	if want := (Key{Volume, "", "v"}); o.Key != want || o.Key.String() != "PersistentVolume v" || o.Volume == nil {
		t.Errorf("%+v, %v", o.Key, o.Volume)
	}
	if s := o.Volume.Spec; s.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimRetain || *s.VolumeMode != v1.PersistentVolumeFilesystem {
		t.Errorf("%+v", s)
	}
	again, err := Restore(Volume, o.Source)
	if err != nil || again.Key != o.Key || !reflect.DeepEqual(again.Volume, o.Volume) {
		t.Errorf("%+v, %v", again, err)
	}
	for _, tt := range []struct{ was, is, want string }{
		{"local: {path: /data}", "nfs: {server: here, path: /data}\n  mountOptions: [vers=4]", ""},
		{"name: v", "name: v, namespace: default", "metadata.namespace: Forbidden: not allowed on this type"},
		{"{path: /data}", "{path: /data, fsType: ext4}", "m.yaml:7: spec.local.fsType: not supported: it says how a block device is formatted"},
		{"{path: /data}", "{path: ../data}", "spec.local.path: Invalid value"},
		{"/data}", "/data}\n  volumeMode: Block", "m.yaml:8: spec.volumeMode: Unsupported value: \"Block\": supported values: \"Filesystem\""},
		{"/data}", "/data}\n  persistentVolumeReclaimPolicy: Delete", "m.yaml:8: spec.persistentVolumeReclaimPolicy: Forbidden: not supported: Delete would remove what berth has not made"},
		{"/data}", "/data}\n  mountOptions: [ro]", "spec.mountOptions: Forbidden: may not specify mount options for this volume type"},
		{"local: {path: /data}", "csi: {driver: d, volumeHandle: h}", "m.yaml:7: spec.csi: not supported: CSI drivers are not run"},
		{"/data}", "/data}\n  hostPath: {path: /other}", "may not specify more than 1 volume type"},
		{text[strings.Index(text, "  nodeAffinity"):], "", "spec.nodeAffinity: Required value: Local volume requires node affinity"},
	} {
		_, err := Decode("m.yaml", []byte(strings.Replace(text, tt.was, tt.is, 1)))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.is, err, tt.want)
		}
	}
}

func TestCheckUpdate(t *testing.T) {
	const secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n"
	const claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: c}\nspec:\n  accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: 1Gi}}\n"
	const volume = "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: v}\nspec:\n  accessModes: [ReadWriteOnce]\n  capacity: {storage: 1Gi}\n  hostPath: {path: /a}\n"
	const fixed = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: f}\nimmutable: true\ndata: {a: b}\n"
	for name, c := range map[string]struct{ was, is, want string }{
		"pod":                 {webPod, webPod + "  hostNetwork: true\n", ""},
		"data of a secret":    {secret, secret + "stringData: {a: b}\n", ""},
		"type of a secret":    {secret, secret + "type: example.com/mine\n", "type: Invalid value"},
		"immutable":           {fixed, strings.Replace(fixed, "a: b", "a: c", 1), "data: Forbidden: field is immutable when `immutable` is set"},
		"label of immutable":  {fixed, strings.Replace(fixed, "name: f", "name: f, labels: {a: b}", 1), ""},
		"larger claim":        {claim, strings.Replace(claim, "1Gi", "2Gi", 1), ""},
		"smaller claim":       {strings.Replace(claim, "1Gi", "2Gi", 1), claim, "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"},
		"larger volume":       {volume, strings.Replace(volume, "1Gi", "2Gi", 1), ""},
		"volume elsewhere":    {volume, strings.Replace(volume, "/a", "/b", 1), "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"},
		"claim of other mode": {claim, strings.Replace(claim, "ReadWriteOnce", "ReadOnlyMany", 1), "spec: Forbidden: spec is immutable after creation"},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckUpdate(decodeOne(t, c.was), decodeOne(t, c.is))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestEphemeralContainersMayBeDeclared(t *testing.T) {
	o := decodeOne(t, webPod+"  ephemeralContainers:\n  - name: debug\n    image: busybox\n")
	if len(o.Pod.Spec.EphemeralContainers) != 1 {
		t.Errorf("%+v", o.Pod.Spec)
	}
}

func TestPriorityClasses(t *testing.T) {
	o := decodeOne(t, webPod+"  priorityClassName: system-node-critical\n")
	if *o.Pod.Spec.Priority != 2000001000 {
		t.Errorf("priority %d", *o.Pod.Spec.Priority)
	}
}

func TestHugeAndEmpty(t *testing.T) {
	if _, err := Decode("m.yaml", make([]byte, MaxSize+1)); err == nil {
		t.Error("a huge file is read")
	}
	for _, text := range []string{"", "\n", "# a\n", "---\n---\n", "null\n"} {
		if objects, err := Decode("m.yaml", []byte(text)); err != nil || len(objects) > 0 {
			t.Errorf("%q: %v, %v", text, objects, err)
		}
	}
	if err := bomb(); err == nil {
		t.Error("an alias bomb is taken")
	}
}

func bomb() error {
	text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 12; i++ {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	_, err := Decode("m.yaml", []byte(text))
	return err
}

// No field of an API type can be forgotten: each that can be met has its line in the table, and no line is left over.
func TestTableIsWhole(t *testing.T) {
	met := map[string]bool{}
	for _, kind := range Kinds {
		walkFields(typeOf[kind], "", func(path string, f structField) bool {
			if _, ok := table[f.key]; !ok && !met[f.key] {
				t.Errorf("%s (%s of a %s) is not in the table", f.key, path, kind)
			}
			met[f.key] = true
			return true
		})
	}
	for key := range table {
		if !met[key] {
			t.Errorf("%s is in the table, but cannot be met", key)
		}
	}
	if len(table) != len(Fields) {
		t.Errorf("%d fields, of which %d differ", len(Fields), len(table))
	}
}

var update = flag.Bool("update", false, "write docs/pods.md anew")

const (
	docPath  = "../../docs/pods.md"
	docBegin = "<!-- fields: go test ./kubelet/manifest -update -->\n"
	docEnd   = "<!-- end of fields -->\n"
)

// docs/pods.md shows the table.
func TestDocsShowTheTable(t *testing.T) {
	text, err := os.ReadFile(docPath)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), docBegin)
	_, after, ok2 := strings.Cut(rest, docEnd)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no lines %q and %q", docPath, docBegin, docEnd)
	}
	want := before + docBegin + markdown() + docEnd + after
	if *update {
		if err := os.WriteFile(docPath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(text) != want {
		t.Errorf("%s is not what the table of fields says: go test ./kubelet/manifest -update", docPath)
	}
}

// markdown is a table for each type, with a heading that says where the type is met.
func markdown() string {
	places := map[string][]string{}
	for _, kind := range Kinds {
		walkFields(typeOf[kind], "", func(path string, f structField) bool {
			typ, name, _ := strings.Cut(f.key, ".")
			at := strings.TrimSuffix(strings.TrimSuffix(path, name), ".")
			if at = string(kind) + " " + at; !slices.Contains(places[typ], at) {
				places[typ] = append(places[typ], at)
			}
			return true
		})
	}
	var b strings.Builder
	last := ""
	for _, f := range Fields {
		if f.Type != last {
			last = f.Type
			fmt.Fprintf(&b, "\n### %s\n\n%s\n\n| field | | |\n| --- | --- | --- |\n", f.Type, in(places[f.Type]))
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Name, f.Verdict, f.Words)
	}
	return b.String() + "\n"
}

// in lists places, but not without end.
func in(places []string) string {
	const shown = 6
	var words []string
	for _, p := range places[:min(shown, len(places))] {
		kind, path, _ := strings.Cut(p, " ")
		if path == "" {
			words = append(words, "A "+kind+" itself")
		} else {
			words = append(words, fmt.Sprintf("`%s` of a %s", path, kind))
		}
	}
	if len(places) > shown {
		words = append(words, "and so on")
	}
	return strings.Join(words, ", ") + "."
}
