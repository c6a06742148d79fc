package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	gort "runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/kubelet/resource"
)

// resourceNode is what the formulas of package resource want to know of the machine.
func resourceNode(host *cgroups.Host, c config.Kubelet) (*resource.Node, error) {
	memory, err := meminfo("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	return &resource.Node{
		MemoryCapacity: memory["MemTotal"], SwapCapacity: memory["SwapTotal"],
		Unified: host.Unified, SwapAccounting: host.Swap, HugePageSizes: host.HugePageSizes,
		LimitedSwap: c.LimitedSwap, PodPids: int64(c.PodPidsLimit),
	}, nil
}

// capacity is what the machine has: all of it is for pods.
func capacity(node *resource.Node, root string, maxPods int) (v1.ResourceList, error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(root, &disk); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: root, Err: err}
	}
	all := v1.ResourceList{
		v1.ResourceCPU:              *apiresource.NewQuantity(int64(gort.NumCPU()), apiresource.DecimalSI),
		v1.ResourceMemory:           *apiresource.NewQuantity(node.MemoryCapacity, apiresource.BinarySI),
		v1.ResourcePods:             *apiresource.NewQuantity(int64(maxPods), apiresource.DecimalSI),
		v1.ResourceEphemeralStorage: *apiresource.NewQuantity(int64(disk.Blocks)*disk.Bsize, apiresource.BinarySI),
	}
	for _, size := range node.HugePageSizes {
		name, bytes, err := hugePages(size)
		if err != nil {
			return nil, err
		}
		all[name] = *apiresource.NewQuantity(bytes, apiresource.BinarySI)
	}
	return all, nil
}

// hugePages returns the resource that pages of a size are ("2MB" is hugepages-2Mi), and how much of it is set aside.
func hugePages(size string) (v1.ResourceName, int64, error) {
	quantity, err := apiresource.ParseQuantity(strings.TrimSuffix(size, "B") + "i")
	if err != nil {
		return "", 0, fmt.Errorf("size of huge pages %q: %w", size, err)
	}
	path := filepath.Join("/sys/kernel/mm/hugepages", fmt.Sprintf("hugepages-%dkB", quantity.Value()>>10), "nr_hugepages")
	data, err := os.ReadFile(path)
	if err != nil {
		return "", 0, err
	}
	pages, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return v1.ResourceName(v1.ResourceHugePagesPrefix + quantity.String()), pages * quantity.Value(), err
}

// meminfo reads the values that are sizes, in bytes.
func meminfo(path string) (map[string]int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := map[string]int64{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		if words := strings.Fields(rest); len(words) == 2 && words[1] == "kB" {
			n, err := strconv.ParseInt(words[0], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", path, name, err)
			}
			all[name] = n << 10
		}
	}
	return all, lines.Err()
}
