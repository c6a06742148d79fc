package podspec

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/apis/core/validation"
)

// DNS is how names are resolved on the node.
type DNS struct {
	// Servers of the cluster's names. Without any, dnsPolicy ClusterFirst means Default.
	Servers []netip.Addr
	// Domain of the cluster: cluster.local.
	Domain string
	// ResolvConf is the path of the node's own settings. "" gives pods none of them.
	ResolvConf string
}

// resolvConfMax bounds what is read of a resolv.conf, in bytes, as upstream does.
const resolvConfMax = 10 << 20

// dnsFor returns the resolver's settings of the pod.
func (n *Node) dnsFor(pod *v1.Pod) (*cri.DNSConfig, error) {
	config, err := n.baseDNS(pod)
	if err != nil {
		return nil, err
	}
	if own := pod.Spec.DNSConfig; own != nil {
		config.Servers = unique(append(config.Servers, own.Nameservers...))
		config.Searches = unique(append(config.Searches, own.Searches...))
		config.Options = mergeOptions(config.Options, own.Options)
	}
	n.fitDNS(pod, config)
	return config, nil
}

// baseDNS is what the pod's policy says.
func (n *Node) baseDNS(pod *v1.Pod) (*cri.DNSConfig, error) {
	policy := pod.Spec.DNSPolicy
	if policy == v1.DNSNone {
		return &cri.DNSConfig{}, nil
	}
	host, err := n.hostDNS()
	if err != nil {
		return nil, err
	}
	onlyHost := policy == v1.DNSDefault || policy == v1.DNSClusterFirst && pod.Spec.HostNetwork
	if onlyHost || len(n.DNS.Servers) == 0 {
		return host, nil
	}
	config := &cri.DNSConfig{Searches: host.Searches, Options: []string{"ndots:5"}}
	for _, ip := range n.DNS.Servers {
		config.Servers = append(config.Servers, ip.String())
	}
	if d := n.DNS.Domain; d != "" {
		cluster := []string{pod.Namespace + ".svc." + d, "svc." + d, d}
		config.Searches = unique(append(cluster, host.Searches...))
	}
	return config, nil
}

// hostDNS are the node's own settings. Without a file there is no resolver but one that listens in the pod itself.
func (n *Node) hostDNS() (*cri.DNSConfig, error) {
	if n.DNS.ResolvConf == "" {
		config := &cri.DNSConfig{Searches: []string{"."}}
		for _, ip := range n.IPs {
			local := "127.0.0.1"
			if ip.Is6() {
				local = "::1"
			}
			config.Servers = append(config.Servers, local)
		}
		if len(config.Servers) == 0 {
			config.Servers = []string{"127.0.0.1"}
		}
		return config, nil
	}
	data, err := os.ReadFile(n.DNS.ResolvConf)
	if err != nil {
		return nil, err
	}
	config, err := parseResolvConf(data)
	if err != nil {
		//lint:ignore ST1005 upstream's words
		return nil, fmt.Errorf("Encountered error while parsing resolv conf file. Error: %w", err)
	}
	return config, nil
}

// parseResolvConf reads a resolv.conf: nameservers add up, of search lines the last one holds, of an option the last value.
func parseResolvConf(data []byte) (*cri.DNSConfig, error) {
	if len(data) > resolvConfMax {
		return nil, fmt.Errorf("it has more than %d bytes", resolvConfMax)
	}
	config := &cri.DNSConfig{}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		switch values := fields[1:]; fields[0] {
		case "nameserver":
			if len(values) == 0 {
				return nil, fmt.Errorf("nameserver list is empty ")
			}
			config.Servers = append(config.Servers, values[0])
		case "search":
			config.Searches = nil
			for _, s := range values {
				if s != "." {
					config.Searches = append(config.Searches, strings.TrimSuffix(s, "."))
				}
			}
		case "options":
			for _, o := range values {
				config.Options = withOption(config.Options, o)
			}
		}
	}
	return config, nil
}

func mergeOptions(options []string, own []v1.PodDNSConfigOption) []string {
	options = slices.Clone(options)
	for _, o := range own {
		option := o.Name
		if o.Value != nil && *o.Value != "" {
			option += ":" + *o.Value
		}
		options = withOption(options, option)
	}
	return options
}

// withOption adds an option, in the place of one of the same name.
func withOption(options []string, option string) []string {
	name, _, _ := strings.Cut(option, ":")
	same := func(o string) bool { n, _, _ := strings.Cut(o, ":"); return n == name }
	if i := slices.IndexFunc(options, same); i >= 0 {
		options[i] = option
		return options
	}
	return append(options, option)
}

func unique(all []string) []string {
	var out []string
	for _, s := range all {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// fitDNS cuts down to what resolvers take, and says so.
func (n *Node) fitDNS(pod *v1.Pod, config *cri.DNSConfig) {
	if len(config.Servers) > validation.MaxDNSNameservers {
		config.Servers = config.Servers[:validation.MaxDNSNameservers]
		n.warn(pod, "DNSConfigForming", "Nameserver limits were exceeded, some nameservers have been omitted, "+
			"the applied nameserver line is: "+strings.Join(config.Servers, " "))
	}
	if fit := fittingSearches(config.Searches); len(fit) < len(config.Searches) {
		config.Searches = fit
		n.warn(pod, "DNSConfigForming", "Search Line limits were exceeded, some search paths have been omitted, "+
			"the applied search line is: "+strings.Join(fit, " "))
	}
}

// fittingSearches leaves out what is beyond the number of domains, what is no domain for its length (glibc 2.28 aborts on
// it), and from the end on what the line has no room for.
func fittingSearches(searches []string) []string {
	var fit []string
	length := -1
	for i, s := range searches {
		if i == validation.MaxDNSSearchPaths {
			break
		}
		if len(s) > utilvalidation.DNS1123SubdomainMaxLength {
			continue
		}
		if length += 1 + len(s); length > validation.MaxDNSSearchListChars {
			break
		}
		fit = append(fit, s)
	}
	return fit
}
