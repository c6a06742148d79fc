package manifest

import (
	"reflect"
	"testing"
)

// Whatever is in a file, it is objects or faults: each fault with a line that there is, each object the same when it is restored
// and when what was kept of it is read again.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		webPod,
		webPod + "    livenessProbe: {httpGet: {port: http}, periodSeconds: 1}\n    resources: {limits: {cpu: 100m, memory: 1Gi}}\n",
		webPod + "---\n# two\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nbinaryData: {a: aGk=}\n",
		"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {b: c}}]\n",
		"apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: c}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n",
		`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"\ud83d\ude00"}]}}`,
		"a: &a [*a]\n", "<<: {a: b}\n", "? [a, b]\n: c\n", "--- |\n ---\n", "%YAML 1.1\n---\na", "- !!binary x", "\xef\xbb\xbf{}", "...\n---\n...\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, err := Decode("f", data)
		lines := breaks(data) + 1
		if err != nil && len(Faults(err)) == 0 {
			t.Fatalf("%v is no fault", err)
		}
		for _, fault := range Faults(err) {
			if fault.Line < 0 || fault.Line > lines {
				t.Errorf("a fault in line %d of %d: %v", fault.Line, lines, fault)
			}
		}
		for _, was := range objects {
			if was.Line < 1 || was.Line > lines {
				t.Errorf("%s in line %d of %d", was.Key, was.Line, lines)
			}
			is, err := Restore(was.Kind, was.Source)
			if err != nil || is.Key != was.Key || is.Hash != was.Hash || !reflect.DeepEqual(is.Pod, was.Pod) || !reflect.DeepEqual(is.Secret, was.Secret) {
				t.Errorf("restored %+v, %v\nfrom %s", is, err, was.Source)
			}
			again, err := Decode("f", was.Source)
			if err != nil || len(again) != 1 || again[0].Hash != was.Hash {
				t.Errorf("read again %+v, %v\nfrom %s", again, err, was.Source)
			}
		}
	})
}
