package procfs

import "testing"

func TestSysctlFile(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":               "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":               "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"net/ipv4/conf/eth0.100/forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"hostname":                          "hostname",
		"":                                  "",
	} {
		if got := SysctlFile(name); got != want {
			t.Errorf("SysctlFile(%q) = %q, want %q", name, got, want)
		}
	}
}
