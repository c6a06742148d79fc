// Package leaks shows what a node left behind on the machine: mounts, network namespaces, cgroups, processes, network
// interfaces with their addresses, nftables rules and files.
//
// A Snapshot is taken before and after; what Since returns are the things that were not there before, in words.
package leaks

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Snapshot is a set of things on the machine, each in words that stay the same as long as the thing is there.
type Snapshot map[string]bool

// watchedFolders are where a node, the CNI plugins it runs and its tests keep files outside of the folders that they are
// given. The number says how deep to look.
var watchedFolders = map[string]int{
	"/run":           1,
	"/run/netns":     1,
	"/run/nri":       1,
	"/run/cni":       3,
	"/var/lib":       1,
	"/var/lib/cni":   3,
	"/var/log/pods":  2,
	"/var/log":       1,
	"/etc":           1,
	"/etc/cni/net.d": 1,
	"/dev/shm":       1,
	"/dev/mqueue":    1,
}

// byDesign stays behind the first pod of a machine for good: the folder that tools look for network namespaces in, shared
// with the mount namespaces of those who look.
func byDesign(thing string, _ bool) bool {
	return thing == "file /run/netns" || strings.HasPrefix(thing, "mount /run/netns (")
}

// notOurs are files that other programs keep by design.
var notOurs = map[string]bool{
	"/run/criu.kdat": true, // what criu knows of the kernel
}

// Take looks at the machine.
func Take() (Snapshot, error) {
	s := Snapshot{}
	for _, look := range []func(Snapshot) error{mounts, cgroups, processes, links, rules, files} {
		if err := look(s); err != nil {
			return nil, err
		}
	}
	maps.DeleteFunc(s, byDesign)
	return s, nil
}

// Since returns what is in s and was not in before, sorted.
func (s Snapshot) Since(before Snapshot) []string {
	var found []string
	for thing := range s {
		if !before[thing] {
			found = append(found, thing)
		}
	}
	slices.Sort(found)
	return found
}

// Wait returns nil as soon as nothing is there that was not there before, and after the limit an error that lists what is.
// It waits because the kernel frees a network namespace and a cgroup some time after their last user.
func Wait(before Snapshot, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		after, err := Take()
		if err != nil {
			return err
		}
		left := after.Since(before)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
	}
}

func mounts(s Snapshot) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		fields := strings.Fields(line)
		left, right, found := strings.Cut(line, " - ")
		if !found || len(strings.Fields(left)) < 5 {
			return fmt.Errorf("mountinfo: unexpected line %q", line)
		}
		s[fmt.Sprintf("mount %s (%s)", fields[4], strings.Fields(right)[0])] = true
	}
	return nil
}

// cgroups enters the folders of all hierarchies of cgroup v1 and of v2.
func cgroups(s Snapshot) error {
	return filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return skipGone(err)
		}
		if d.IsDir() {
			s["cgroup "+path] = true
		}
		return nil
	})
}

// skipGone passes over what vanished while we looked.
func skipGone(err error) error {
	if os.IsNotExist(err) {
		return fs.SkipDir
	}
	return err
}

// processes enters berth's own programs, and all processes that live in a pid or mount namespace other than ours.
func processes(s Snapshot) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	ownPid, ownMnt := namespace("/proc/self", "pid"), namespace("/proc/self", "mnt")
	for _, dir := range dirs {
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil {
			continue // a kernel thread, a zombie, or gone
		}
		name := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
		ours := strings.HasPrefix(name, "berth") || strings.HasPrefix(exe, "/memfd:berth")
		foreign := namespace(dir, "pid") != ownPid || namespace(dir, "mnt") != ownMnt
		if !ours && !foreign {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // gone: an empty one
		pid := filepath.Base(dir)
		s[fmt.Sprintf("process %s (started at tick %s): %s", pid, startTime(dir), bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '}))] = true
	}
	return nil
}

func namespace(dir, kind string) string {
	link, _ := os.Readlink(filepath.Join(dir, "ns", kind)) // gone: the empty name
	return link
}

// startTime is field 22 of stat; a pid alone names different processes in turn.
func startTime(dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return "?"
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return "?"
	}
	return fields[19]
}

func links(s Snapshot) error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		s["interface "+i.Name] = true
		addresses, err := i.Addrs()
		if err != nil {
			continue // the interface is gone
		}
		for _, a := range addresses {
			s[fmt.Sprintf("address %s on %s", a, i.Name)] = true
		}
	}
	return nil
}

var counters = regexp.MustCompile(`packets \d+ bytes \d+`)

// rules enters every line of the nftables ruleset under its table and chain.
func rules(s Snapshot) error {
	if _, err := exec.LookPath("nft"); err != nil {
		return nil
	}
	out, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		return fmt.Errorf("nft list ruleset: %w", err)
	}
	var table string
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		line := strings.TrimSpace(counters.ReplaceAllString(lines.Text(), ""))
		if strings.HasPrefix(line, "table ") {
			table = strings.TrimSuffix(line, " {")
		}
		if line != "" && line != "}" {
			s[fmt.Sprintf("nftables %s: %s", table, line)] = true
		}
	}
	return nil
}

func files(s Snapshot) error {
	for dir, depth := range watchedFolders {
		base := strings.Count(dir, "/")
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return skipGone(err)
			}
			if path != dir && !notOurs[path] {
				s["file "+path] = true
			}
			if d.IsDir() && strings.Count(path, "/")-base >= depth {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// MountsBelow returns the mount points at and below a folder, the deepest first, so that they can be unmounted in turn.
func MountsBelow(dir string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point, err := strconv.Unquote(`"` + fields[4] + `"`) // the kernel writes a space as \040
		if err != nil {
			point = fields[4]
		}
		if point == dir || strings.HasPrefix(point, dir+"/") {
			found = append(found, point)
		}
	}
	slices.Reverse(found)
	return found, nil
}
