//go:build tools

// Package kubelet pins the upstream kubelet that integration/kubelet runs, and kubectl. It is a module of its own, since it
// brings more than all the rest of the repository together.
package kubelet

import (
	_ "k8s.io/component-base/cli"
	_ "k8s.io/kubectl/pkg/cmd"
	_ "k8s.io/kubernetes/cmd/kubelet/app"
)
