package podspec

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// What the kernel takes as the name of a host, without the byte that ends it; names of DNS end one earlier.
const (
	hostnameMax = 63
	fqdnMax     = 64
)

// Hostname returns the pod's name as a host, and its domain, which may be empty.
func (n *Node) Hostname(pod *v1.Pod) (name, domain string, err error) {
	if o := pod.Spec.HostnameOverride; o != nil {
		if faults := validation.IsDNS1123Subdomain(*o); len(faults) > 0 {
			return "", "", fmt.Errorf("pod HostnameOverride %q is not a valid DNS subdomain: %s", *o, strings.Join(faults, ";"))
		}
		name, err = truncated(pod, *o)
		return name, "", err
	}
	name = pod.Name
	if h := pod.Spec.Hostname; h != "" {
		if faults := validation.IsDNS1123Label(h); len(faults) > 0 {
			return "", "", fmt.Errorf("pod Hostname %q is not a valid DNS label: %s", h, strings.Join(faults, ";"))
		}
		name = h
	}
	if name, err = truncated(pod, name); err != nil {
		return "", "", err
	}
	if s := pod.Spec.Subdomain; s != "" {
		if faults := validation.IsDNS1123Label(s); len(faults) > 0 {
			return "", "", fmt.Errorf("pod Subdomain %q is not a valid DNS label: %s", s, strings.Join(faults, ";"))
		}
		domain = strings.TrimSuffix(fmt.Sprintf("%s.%s.svc.%s", s, pod.Namespace, n.DNS.Domain), ".")
	}
	return name, domain, nil
}

// truncated makes a name short enough; the name of a pod may have 253 characters.
func truncated(pod *v1.Pod, name string) (string, error) {
	if len(name) <= hostnameMax {
		return name, nil
	}
	short := strings.TrimRight(name[:hostnameMax], "-.")
	if short == "" {
		return "", fmt.Errorf("hostname for pod %q was invalid: %q", pod.Name, name)
	}
	return short, nil
}

// kernelHostname is what uname tells in the pod.
func kernelHostname(pod *v1.Pod, name, domain string) (string, error) {
	if full := pod.Spec.SetHostnameAsFQDN; domain == "" || full == nil || !*full {
		return name, nil
	}
	fqdn := name + "." + domain
	if len(fqdn) > fqdnMax {
		return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, "+
			"FQDN %s is too long (%d characters is the max, %d characters requested)", fqdn, fqdnMax, len(fqdn))
	}
	return fqdn, nil
}
