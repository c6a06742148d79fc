package cri

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/runtime"
)

// ListPodSandboxMetrics stands in for cAdvisor: with it a kubelet fills /metrics/cadvisor. Names, help texts and labels are
// therefore cAdvisor's, as its library has them in the kubelet; dashboards and alerts know them. The CRI carries whole
// numbers, so seconds lose their fraction.

// metric is one line of the tables in metrics_*.go.
type metric struct {
	name, help string
	kind       cri.MetricType
	// extra are the labels after the base labels.
	extra []string
	// values reads the metric off a sample; none where this node, or this kind of cgroup, does not have it.
	values func(*sample) []value
}

type value struct {
	n uint64
	// labels are the values of extra.
	labels []string
}

// sample is all that is known of one container or pod at one moment.
type sample struct {
	at    time.Time
	stats *cgroups.Stats // nil without a cgroup
	// started is when the container was started, or the pod created.
	started time.Time

	interfaces []runtime.InterfaceStats // of a pod
	processes  *processes               // of a container
	disk       *disk                    // of a container
	// device names a block device, "/dev/vda".
	device func(major, minor uint64) string
}

const (
	counter = cri.MetricType_COUNTER
	gauge   = cri.MetricType_GAUGE
)

// baseLabels are what the kubelet gives the metrics that it takes from cAdvisor. On a pod "container" and "image" are empty.
var baseLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// allMetrics are all of them, in cAdvisor's order.
var allMetrics = slices.Concat(
	seenMetrics, cpuMetrics, hugetlbMetrics, memoryMetrics, diskMetrics, networkMetrics, processMetrics, oomMetrics,
	pressureMetrics, specMetrics,
)

func metricDescriptors() []*cri.MetricDescriptor {
	out := make([]*cri.MetricDescriptor, 0, len(allMetrics))
	for _, m := range allMetrics {
		out = append(out, &cri.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels, m.extra)})
	}
	return out
}

// measure returns the metrics of a sample. Their time is 0, which says that they were read for this very answer.
func measure(s *sample, base []string) []*cri.Metric {
	var out []*cri.Metric
	for _, m := range allMetrics {
		for _, v := range m.values(s) {
			out = append(out, &cri.Metric{
				Name:        m.name,
				MetricType:  m.kind,
				LabelValues: slices.Concat(base, v.labels),
				Value:       number(v.n),
			})
		}
	}
	return out
}

// meter makes the samples for one answer.
type meter struct {
	cgroups *cgroups.Host // nil: no processes
	disks   *disks
}

func newMeter(host *cgroups.Host) *meter { return &meter{cgroups: host, disks: newDisks()} }

// pod measures a pod and its containers.
func (m *meter) pod(st runtime.SandboxStats) *cri.PodSandboxMetrics {
	sb := st.Sandbox
	pod := sb.Config.GetMetadata()
	parent := sb.Config.GetLinux().GetCgroupParent()
	s := &sample{at: st.At, stats: st.Cgroup, started: sb.CreatedAt, interfaces: st.Interfaces, device: m.disks.device}
	out := &cri.PodSandboxMetrics{
		PodSandboxId: sb.ID,
		Metrics:      measure(s, []string{"", parent, "", sb.ID, pod.GetNamespace(), pod.GetName()}),
	}
	for _, c := range st.Containers {
		out.ContainerMetrics = append(out.ContainerMetrics, &cri.ContainerMetrics{
			ContainerId: c.Container.ID,
			Metrics: measure(m.container(c), []string{
				c.Container.Config.GetMetadata().GetName(),
				cgroupID(parent, c.Container.CgroupsPath),
				imageLabel(c.Container.Image),
				c.Container.ID,
				pod.GetNamespace(),
				pod.GetName(),
			}),
		})
	}
	return out
}

func (m *meter) container(st runtime.ContainerStats) *sample {
	s := &sample{at: st.At, stats: st.Cgroup, started: st.Container.StartedAt, device: m.disks.device}
	if s.started.IsZero() {
		s.started = st.Container.CreatedAt
	}
	s.disk = m.disks.of(st.Rootfs)
	if m.cgroups != nil && st.Cgroup != nil {
		s.processes = m.processes(st.Container)
	}
	return s
}

// cgroupID is the path of a container's cgroup, which cAdvisor calls its id. With systemd the OCI path names the scope
// ("kubepods-pod1.slice:cri-berth:ID") and the parent has the folders.
func cgroupID(parent, ociPath string) string {
	slice, scope, ok := strings.Cut(ociPath, ":")
	if !ok {
		return ociPath
	}
	if parent == "" {
		parent = "/" + slice
	}
	return path.Join(parent, strings.ReplaceAll(scope, ":", "-")+".scope")
}

// imageLabel is what a person calls the image.
func imageLabel(img runtime.ContainerImage) string {
	return cmp.Or(img.UserSpecified, img.Ref, img.ID)
}

// one is the values of a metric that has no labels of its own.
func one(n uint64) []value { return []value{{n: n}} }

// whole is d in seconds.
func whole(d time.Duration) uint64 {
	if d < 0 {
		return 0
	}
	return uint64(d / time.Second)
}

// limit is a limit as cAdvisor shows it: none is 0.
func limit(n uint64) uint64 {
	if n == cgroups.Unlimited {
		return 0
	}
	return n
}
