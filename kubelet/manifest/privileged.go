package manifest

import "k8s.io/kubernetes/pkg/capabilities"

// Upstream's validation refuses privileged containers until a program says once that they may be. Whoever declares pods here
// is root of the node: nobody is kept from anything by a refusal.
func init() { capabilities.Initialize(capabilities.Capabilities{AllowPrivileged: true}) }
