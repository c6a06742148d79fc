package kubelet

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// podOf is a pod with a spec.
func podOf(t *testing.T, spec string) *v1.Pod {
	t.Helper()
	p := &v1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatal(err)
	}
	p.Name, p.Namespace, p.UID, p.Generation = "p", "default", "uid", 1
	return p
}

// What of resources changes in place, and what makes another pod.
func TestEditOfResources(t *testing.T) {
	const (
		main = "containers: [{name: a, resources: {requests: {cpu: 1, memory: 1Gi}, limits: {memory: 2Gi}}}]"
		init = "\ninitContainers: [{name: i, resources: {requests: {cpu: 1}}}]"
	)
	for name, c := range map[string]struct {
		from, to string
		inPlace  bool
	}{
		"cpu and memory":       {main, "containers: [{name: a, resources: {requests: {cpu: 2, memory: 1500Mi}, limits: {memory: 3Gi}}}]", true},
		"a limit comes":        {main, "containers: [{name: a, resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 3, memory: 2Gi}}}]", true},
		"a limit goes":         {main, "containers: [{name: a, resources: {requests: {cpu: 1, memory: 1Gi}}}]", false},
		"the class changes":    {main, "containers: [{name: a, resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1, memory: 1Gi}}}]", false},
		"something else comes": {main, "containers: [{name: a, resources: {requests: {cpu: 1, memory: 1Gi}, limits: {memory: 2Gi, ephemeral-storage: 1Gi}}}]", false},
		"another policy":       {main, "containers: [{name: a, resizePolicy: [{resourceName: cpu, restartPolicy: RestartContainer}], resources: {requests: {cpu: 2, memory: 1Gi}, limits: {memory: 2Gi}}}]", false},
		"the command too":      {main, "containers: [{name: a, command: [b], resources: {requests: {cpu: 2, memory: 1Gi}, limits: {memory: 2Gi}}}]", false},
		"the image too":        {main, "containers: [{name: a, image: b, resources: {requests: {cpu: 2, memory: 1Gi}, limits: {memory: 2Gi}}}]", true},
		"an init container's":  {main + init, main + "\ninitContainers: [{name: i, resources: {requests: {cpu: 2}}}]", true},
		"another container":    {main, main + init, false},
		"the pod's":            {"resources: {limits: {cpu: 1}}\n" + main, "resources: {limits: {cpu: 2}}\n" + main, true},
		"the pod's come":       {main, "resources: {limits: {cpu: 2, memory: 4Gi}}\n" + main, true},
		"the pod's go":         {"resources: {limits: {cpu: 1}}\n" + main, main, false},
		"an init that would have to run again": {
			main + "\ninitContainers: [{name: i, resizePolicy: [{resourceName: cpu, restartPolicy: RestartContainer}], resources: {requests: {cpu: 1}}}]",
			main + "\ninitContainers: [{name: i, resizePolicy: [{resourceName: cpu, restartPolicy: RestartContainer}], resources: {requests: {cpu: 2}}}]", false},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := podOf(t, c.from), podOf(t, c.to)
			edited, inPlace := edit(from, to)
			if inPlace != c.inPlace || inPlace && edited.Generation != 2 {
				t.Fatalf("in place: %v, %+v", inPlace, edited)
			}
			if !inPlace {
				return
			}
			// It is given what it wishes, or keeps what it has: nothing in between.
			p := &incarnation{pod: from}
			p.become(edited)
			if p.wanted != edited || p.wish() != edited || p.pod.Generation != 2 {
				t.Errorf("%+v", p)
			}
			if back, _ := edit(p.wish(), podOf(t, c.from)); back != nil {
				p.become(back)
				if p.wanted != nil {
					t.Error("what is taken back is still wished for")
				}
			}
		})
	}
}
