package main

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	gort "runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/config"
	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/kubelet/evict"
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

// capacity is what the machine has.
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

// reservations are what is kept from pods, of the settings kubeReserved and systemReserved together.
func reservations(c *config.Kubelet) (v1.ResourceList, error) {
	all := v1.ResourceList{}
	settings := map[string]map[string]string{"kubeReserved": c.KubeReserved, "systemReserved": c.SystemReserved}
	for _, setting := range slices.Sorted(maps.Keys(settings)) {
		list := settings[setting]
		for _, name := range slices.Sorted(maps.Keys(list)) {
			fault := func(words string) error {
				return fmt.Errorf("kubelet.%s: %s: %s: %w", setting, name, words, errdefs.ErrInvalidArgument)
			}
			switch v1.ResourceName(name) {
			case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
			default:
				return nil, fault("there is no such resource to reserve; there are cpu, ephemeral-storage and memory")
			}
			amount, err := apiresource.ParseQuantity(list[name])
			if err != nil || amount.Sign() < 0 {
				return nil, fault(fmt.Sprintf("want an amount, as 100m or 200Mi, not %q", list[name]))
			}
			sum := all[v1.ResourceName(name)]
			sum.Add(amount)
			all[v1.ResourceName(name)] = sum
		}
	}
	return all, nil
}

// forPods is what pods may use of what the machine has, and what of that they may request: not what is left free so that
// none has to be evicted.
func forPods(capacity v1.ResourceList, c *config.Kubelet) (usable, allocatable v1.ResourceList, err error) {
	reserved, err := reservations(c)
	if err != nil {
		return nil, nil, err
	}
	thresholds, err := evictionRules(c)
	if err != nil {
		return nil, nil, err
	}
	usable, allocatable = capacity.DeepCopy(), capacity.DeepCopy()
	for name, amount := range reserved {
		take(usable, name, amount)
		take(allocatable, name, amount)
	}
	for signal, name := range map[evict.Signal]v1.ResourceName{evict.MemoryAvailable: v1.ResourceMemory, evict.NodeFsAvailable: v1.ResourceEphemeralStorage} {
		whole := capacity[name]
		take(allocatable, name, *apiresource.NewQuantity(evict.Reserved(thresholds, signal, whole.Value()), whole.Format))
	}
	for name, left := range allocatable {
		if whole := capacity[name]; left.Sign() < 0 {
			return nil, nil, fmt.Errorf("kubelet.kubeReserved, systemReserved and evictionHard keep more %s from pods than there is, %s: %w",
				name, whole.String(), errdefs.ErrInvalidArgument)
		}
	}
	return usable, allocatable, nil
}

func take(from v1.ResourceList, name v1.ResourceName, amount apiresource.Quantity) {
	left := from[name]
	left.Sub(amount)
	from[name] = left
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
