package server

import (
	"net/netip"
	"os"
	goruntime "runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NodeFacts are what a v1.Node is made of that this package does not know.
type NodeFacts struct {
	Name    string
	Version string // of berth
	IPs     []netip.Addr
	Created time.Time
	Started time.Time // the daemon
	// Capacity is the machine's; Allocatable what of it pods may ask for.
	Capacity, Allocatable v1.ResourceList
	NotReady              error // why pods cannot run; nil if they can
	Pressure              []v1.NodeConditionType
	Images                []v1.ContainerImage
	KubeletPort           int32 // 0: not served
}

// NodeLabels are those of the node.
func NodeLabels(name string) map[string]string {
	return map[string]string{v1.LabelHostname: name, v1.LabelOSStable: goruntime.GOOS, v1.LabelArchStable: goruntime.GOARCH}
}

// NodeObject is the node in the API's words.
func NodeObject(f NodeFacts) *v1.Node {
	n := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: f.Name, UID: types.UID(f.Name), CreationTimestamp: metav1.NewTime(f.Created),
			Labels: NodeLabels(f.Name),
		},
		Status: v1.NodeStatus{
			Capacity: f.Capacity, Allocatable: f.Allocatable, Images: f.Images, Conditions: f.conditions(),
			DaemonEndpoints: v1.NodeDaemonEndpoints{KubeletEndpoint: v1.DaemonEndpoint{Port: f.KubeletPort}},
			NodeInfo: v1.NodeSystemInfo{
				MachineID: line("/etc/machine-id"), SystemUUID: line("/sys/class/dmi/id/product_uuid"), BootID: line("/proc/sys/kernel/random/boot_id"),
				KernelVersion: kernelVersion(), OSImage: osImage("/etc/os-release"), ContainerRuntimeVersion: "berth://" + f.Version,
				KubeletVersion: kubernetesVersion, OperatingSystem: goruntime.GOOS, Architecture: goruntime.GOARCH,
			},
		},
	}
	for _, ip := range f.IPs {
		n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: ip.String()})
	}
	n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: f.Name})
	return n
}

// conditions are upstream's, Ready as the last one, as clients expect it.
func (f *NodeFacts) conditions() []v1.NodeCondition {
	at := metav1.NewTime(f.Started)
	var all []v1.NodeCondition
	for _, c := range []struct {
		kind     v1.NodeConditionType
		bad, why string
		message  [2]string
	}{
		{v1.NodeMemoryPressure, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory", [2]string{"kubelet has insufficient memory available", "kubelet has sufficient memory available"}},
		{v1.NodeDiskPressure, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure", [2]string{"kubelet has disk pressure", "kubelet has no disk pressure"}},
		{v1.NodePIDPressure, "KubeletHasInsufficientPID", "KubeletHasSufficientPID", [2]string{"kubelet has insufficient PID available", "kubelet has sufficient PID available"}},
	} {
		condition := v1.NodeCondition{Type: c.kind, Status: v1.ConditionFalse, Reason: c.why, Message: c.message[1], LastHeartbeatTime: at, LastTransitionTime: at}
		for _, pressure := range f.Pressure {
			if pressure == c.kind {
				condition.Status, condition.Reason, condition.Message = v1.ConditionTrue, c.bad, c.message[0]
			}
		}
		all = append(all, condition)
	}
	ready := v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status", LastHeartbeatTime: at, LastTransitionTime: at}
	if f.NotReady != nil {
		ready.Status, ready.Reason, ready.Message = v1.ConditionFalse, "KubeletNotReady", f.NotReady.Error()
	}
	return append(all, ready)
}

func line(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func kernelVersion() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// osImage is the distribution's name for itself (os-release(5)).
func osImage(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for l := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(l, "PRETTY_NAME="); ok {
			return strings.Trim(strings.TrimSpace(name), `"'`)
		}
	}
	return ""
}
