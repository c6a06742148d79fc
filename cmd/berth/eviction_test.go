package main

import (
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestImagesOf(t *testing.T) {
	volume := func(reference string) v1.Volume {
		return v1.Volume{VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: reference}}}
	}
	pod := &v1.Pod{Spec: v1.PodSpec{
		InitContainers: []v1.Container{{Image: "first"}}, Containers: []v1.Container{{Image: "main"}},
		Volumes: []v1.Volume{volume("data"), volume(""), {VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}},
	}}
	if got, want := imagesOf(pod), []string{"main", "first", "data"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
