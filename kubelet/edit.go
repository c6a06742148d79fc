package kubelet

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/berth-node/berth/kubelet/manifest"
	"github.com/berth-node/berth/kubelet/resource"
)

// edit returns the pod as it is after an edit of its declaration, if that is one of those that change a pod which runs, as an API
// server would have it: of images, the deadline, tolerations, labels and annotations, new ephemeral containers, and resources that
// can be changed in place. Everything else makes another pod.
func edit(pod, declared *v1.Pod) (edited *v1.Pod, inPlace bool) {
	edited = pod.DeepCopy()
	want := declared.DeepCopy()
	want.Spec.NodeName = pod.Spec.NodeName
	edited.Labels, edited.Annotations = want.Labels, want.Annotations
	copyImages(edited.Spec.Containers, want.Spec.Containers)
	copyImages(edited.Spec.InitContainers, want.Spec.InitContainers)
	copyResources(&edited.Spec, &want.Spec)
	edited.Spec.ActiveDeadlineSeconds = want.Spec.ActiveDeadlineSeconds
	edited.Spec.Tolerations = want.Spec.Tolerations
	if have := edited.Spec.EphemeralContainers; len(want.Spec.EphemeralContainers) > len(have) {
		edited.Spec.EphemeralContainers = append(have, want.Spec.EphemeralContainers[len(have):]...)
	}
	if !equality.Semantic.DeepEqual(edited.Spec, want.Spec) || resource.Class(edited) != resource.Class(pod) {
		return nil, false
	}
	if !equality.Semantic.DeepEqual(edited.Spec, pod.Spec) {
		edited.Generation++
	}
	return edited, true
}

func copyImages(have, want []v1.Container) {
	for i := range have {
		if i < len(want) && have[i].Name == want[i].Name {
			have[i].Image = want[i].Image
		}
	}
}

// copyResources takes over the resources that can be changed in place, as an API server checks it: CPU and memory, of the pod and of
// its containers, and none goes.
func copyResources(have, want *v1.PodSpec) {
	if want.Resources != nil && resizable(valueOf(have.Resources), *want.Resources) {
		have.Resources = want.Resources
	}
	each := func(have, want []v1.Container, may func(*v1.Container) bool) {
		for i := range have {
			if i < len(want) && have[i].Name == want[i].Name && may(&have[i]) && resizable(have[i].Resources, want[i].Resources) {
				have[i].Resources = want[i].Resources
			}
		}
	}
	each(have.Containers, want.Containers, func(*v1.Container) bool { return true })
	// An init container that is to be run once is not run again for other resources.
	each(have.InitContainers, want.InitContainers, func(c *v1.Container) bool {
		return podutil.IsRestartableInitContainer(c) || !slices.ContainsFunc(c.ResizePolicy, func(p v1.ContainerResizePolicy) bool {
			return p.RestartPolicy == v1.RestartContainer
		})
	})
}

func valueOf(r *v1.ResourceRequirements) v1.ResourceRequirements {
	if r == nil {
		return v1.ResourceRequirements{}
	}
	return *r
}

func resizable(have, want v1.ResourceRequirements) bool {
	return equality.Semantic.DeepEqual(have.Claims, want.Claims) &&
		listResizable(have.Requests, want.Requests) && listResizable(have.Limits, want.Limits)
}

func listResizable(have, want v1.ResourceList) bool {
	for name := range have {
		if _, stays := want[name]; !stays {
			return false
		}
	}
	for name, q := range want {
		was, there := have[name]
		if name != v1.ResourceCPU && name != v1.ResourceMemory && !(there && was.Equal(q)) {
			return false
		}
	}
	return true
}

// withResources is a pod with the resources of another one, which has the same containers.
func withResources(pod, of *v1.Pod) *v1.Pod {
	pod = pod.DeepCopy()
	pod.Spec.Resources = of.Spec.Resources.DeepCopy()
	each := func(to, from []v1.Container) {
		for i := range to {
			from[i].Resources.DeepCopyInto(&to[i].Resources)
		}
	}
	each(pod.Spec.Containers, of.Spec.Containers)
	each(pod.Spec.InitContainers, of.Spec.InitContainers)
	return pod
}

// findContainer finds a container of any kind; nil if there is none.
func findContainer(s *v1.PodSpec, name string) *v1.Container {
	for _, all := range [][]v1.Container{s.Containers, s.InitContainers} {
		for i := range all {
			if all[i].Name == name {
				return &all[i]
			}
		}
	}
	for i := range s.EphemeralContainers {
		if s.EphemeralContainers[i].Name == name {
			return (*v1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon)
		}
	}
	return nil
}

// uses reports whether a pod refers to a ConfigMap, a Secret or a claim. A PersistentVolume may be that of any claim.
func uses(s *v1.PodSpec, key manifest.Key) bool {
	for i := range s.Volumes {
		if volumeUses(&s.Volumes[i], key) {
			return true
		}
	}
	if key.Kind == manifest.Secret && slices.ContainsFunc(s.ImagePullSecrets, func(r v1.LocalObjectReference) bool { return r.Name == key.Name }) {
		return true
	}
	for _, all := range [][]v1.Container{s.InitContainers, s.Containers} {
		for i := range all {
			if environmentUses(&all[i], key) {
				return true
			}
		}
	}
	return false
}

func volumeUses(v *v1.Volume, key manifest.Key) bool {
	switch {
	case v.ConfigMap != nil:
		return key.Kind == manifest.ConfigMap && v.ConfigMap.Name == key.Name
	case v.Secret != nil:
		return key.Kind == manifest.Secret && v.Secret.SecretName == key.Name
	case v.PersistentVolumeClaim != nil:
		return key.Kind == manifest.Claim && v.PersistentVolumeClaim.ClaimName == key.Name || key.Kind == manifest.Volume
	case v.Projected != nil:
		return slices.ContainsFunc(v.Projected.Sources, func(p v1.VolumeProjection) bool {
			return p.ConfigMap != nil && key.Kind == manifest.ConfigMap && p.ConfigMap.Name == key.Name ||
				p.Secret != nil && key.Kind == manifest.Secret && p.Secret.Name == key.Name
		})
	}
	return false
}

func environmentUses(c *v1.Container, key manifest.Key) bool {
	return slices.ContainsFunc(c.EnvFrom, func(e v1.EnvFromSource) bool {
		return e.ConfigMapRef != nil && key.Kind == manifest.ConfigMap && e.ConfigMapRef.Name == key.Name ||
			e.SecretRef != nil && key.Kind == manifest.Secret && e.SecretRef.Name == key.Name
	}) || slices.ContainsFunc(c.Env, func(e v1.EnvVar) bool {
		f := e.ValueFrom
		return f != nil && (f.ConfigMapKeyRef != nil && key.Kind == manifest.ConfigMap && f.ConfigMapKeyRef.Name == key.Name ||
			f.SecretKeyRef != nil && key.Kind == manifest.Secret && f.SecretKeyRef.Name == key.Name)
	})
}
