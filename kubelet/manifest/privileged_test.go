package manifest

import "testing"

func TestPrivilegedContainers(t *testing.T) {
	_, err := Decode("p.yaml", []byte(`apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - {name: a, image: b, securityContext: {privileged: true}}
`))
	if err != nil {
		t.Error(err)
	}
}
