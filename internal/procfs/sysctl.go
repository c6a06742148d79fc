package procfs

import "strings"

// SysctlFile returns which path below /proc/sys a name stands for. As with sysctl(8), the first separator decides: after a dot,
// dots separate and slashes stand for the dots of an interface's name (net.ipv4.conf.eth0/1.forwarding); after a slash the name
// is a path as it stands. Where the path leads is for the caller to judge.
func SysctlFile(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}
