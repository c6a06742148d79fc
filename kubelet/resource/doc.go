// Package resource knows what pods may use of the node: their class, the formulas that turn requests and limits into what
// cgroups and the kernel take, the cgroups of pods themselves, who fits on the node, and who goes first when it is full.
//
// The meaning is upstream's (pkg/kubelet/cm, kuberuntime, qos, eviction), number for number. What is no method of [Manager]
// is pure.
package resource
