package server

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/stream"
)

// Port is the handler of the kubelet's port, with the paths of upstream's.
//
//	/healthz /pods /runningpods/ /configz
//	/containerLogs/NS/POD/CONTAINER
//	/{exec,attach}/NS/POD[/UID]/CONTAINER  /portForward/NS/POD[/UID]
//	/stats/summary  /metrics /metrics/{resource,cadvisor,probes}
func (s *Server) Port() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthy)
	mux.HandleFunc("GET /healthz/ping", healthy)
	mux.HandleFunc("GET /healthz/syncloop", healthy)
	for _, path := range []string{"/pods", "/pods/"} {
		mux.HandleFunc("GET "+path, s.portPods)
	}
	mux.HandleFunc("GET /runningpods/", s.portRunningPods)
	mux.HandleFunc("GET /configz", func(w http.ResponseWriter, _ *http.Request) {
		send(w, http.StatusOK, map[string]any{"kubeletconfig": s.cfg.Configz})
	})
	mux.HandleFunc("GET /containerLogs/{namespace}/{name}/{container}", s.portLogs)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		for _, id := range []string{"", "/{uid}"} {
			mux.HandleFunc(method+" /exec/{namespace}/{name}"+id+"/{container}", s.portExec)
			mux.HandleFunc(method+" /attach/{namespace}/{name}"+id+"/{container}", s.portAttach)
			mux.HandleFunc(method+" /portForward/{namespace}/{name}"+id, s.portPortForward)
		}
	}
	mux.HandleFunc("GET /stats/summary", s.handleSummary)
	mux.HandleFunc("GET /metrics", collected(s.collectKubelet, s.cfg.Daemon))
	mux.Handle("GET /metrics/probes", promhttp.HandlerFor(s.cfg.Probes, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /metrics/resource", collected(s.collectResources))
	mux.HandleFunc("GET /metrics/cadvisor", collected(s.collectCadvisor))
	return mux
}

func (s *Server) portPods(w http.ResponseWriter, r *http.Request) {
	objects, version := s.resources["pods"].list()
	send(w, http.StatusOK, form{}.list(s.resources["pods"], objects, version, s.cfg.Now()))
}

// portRunningPods has of each pod no more than its names and the containers of it that run, as upstream's has.
func (s *Server) portRunningPods(w http.ResponseWriter, _ *http.Request) {
	list := v1.PodList{TypeMeta: coreType("PodList"), Items: []v1.Pod{}}
	pods, _ := s.cfg.Kubelet.Pods().List()
	for _, p := range pods {
		running := v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, UID: p.UID}}
		for _, c := range containerStatuses(p) {
			if c.State.Running != nil {
				running.Spec.Containers = append(running.Spec.Containers, v1.Container{Name: c.Name, Image: c.Image})
			}
		}
		if len(running.Spec.Containers) > 0 {
			list.Items = append(list.Items, running)
		}
	}
	send(w, http.StatusOK, list)
}

// containerStatuses are those of all sorts of containers.
func containerStatuses(p *v1.Pod) []v1.ContainerStatus {
	return slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses)
}

// portPod is the pod that the path names, and the container, which must be one of it.
func (s *Server) portPod(r *http.Request) (*v1.Pod, string, error) {
	pod, err := s.pod(r)
	if err != nil {
		return nil, "", err
	}
	if uid := r.PathValue("uid"); uid != "" && types.UID(uid) != pod.UID {
		return nil, "", errNotFound("pods", r.PathValue("name"))
	}
	container := r.PathValue("container")
	if container != "" {
		if container, err = containerName(pod, container); err != nil {
			return nil, "", err
		}
	}
	return pod, container, nil
}

func (s *Server) portLogs(w http.ResponseWriter, r *http.Request) {
	pod, container, err := s.portPod(r)
	if err != nil {
		fail(w, err)
		return
	}
	s.serveLog(w, r, pod, container)
}

func (s *Server) portExec(w http.ResponseWriter, r *http.Request) {
	id, connect, err := s.portStreams(r)
	s.serveExec(w, r, id, connect, err)
}

func (s *Server) portAttach(w http.ResponseWriter, r *http.Request) {
	id, connect, err := s.portStreams(r)
	if err != nil {
		fail(w, err)
		return
	}
	s.cfg.Sessions.ServeAttach(w, r, stream.AttachRequest{ContainerID: id, Connect: connect})
}

func (s *Server) portStreams(r *http.Request) (string, stream.Connect, error) {
	connect, err := flags(r.URL.Query(), "input", "output", "error")
	if err != nil {
		return "", connect, err
	}
	pod, container, err := s.portPod(r)
	if err != nil {
		return "", connect, err
	}
	id, err := s.runningContainer(pod, container)
	return id, connect, err
}

func (s *Server) portPortForward(w http.ResponseWriter, r *http.Request) {
	pod, _, err := s.portPod(r)
	if err != nil {
		fail(w, err)
		return
	}
	s.servePortForward(w, r, pod)
}

// collected answers with the metrics that collect makes for this very request, and what others have.
func collected(collect func(context.Context, chan<- prometheus.Metric) error, others ...prometheus.Gatherer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		registry := prometheus.NewRegistry()
		registry.MustRegister(collector(func(ch chan<- prometheus.Metric) {
			if err := collect(r.Context(), ch); err != nil {
				ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("error", "", nil, nil), err)
			}
		}))
		promhttp.HandlerFor(prometheus.Gatherers(append(others, registry)), promhttp.HandlerOpts{}).ServeHTTP(w, r)
	}
}

// A collector is one whose metrics are known when they are collected.
type collector func(chan<- prometheus.Metric)

func (c collector) Describe(chan<- *prometheus.Desc)    {}
func (c collector) Collect(ch chan<- prometheus.Metric) { c(ch) }

var (
	containerLabels = []string{"container", "pod", "namespace"}
	podLabels       = []string{"pod", "namespace"}

	nodeCPU         = prometheus.NewDesc("node_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the node in core-seconds", nil, nil)
	nodeMemory      = prometheus.NewDesc("node_memory_working_set_bytes", "[STABLE] Current working set of the node in bytes", nil, nil)
	nodeSwap        = prometheus.NewDesc("node_swap_usage_bytes", "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems", nil, nil)
	containerCPU    = prometheus.NewDesc("container_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the container in core-seconds", containerLabels, nil)
	containerMemory = prometheus.NewDesc("container_memory_working_set_bytes", "[STABLE] Current working set of the container in bytes", containerLabels, nil)
	containerSwap   = prometheus.NewDesc("container_swap_usage_bytes", "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems", containerLabels, nil)
	containerStart  = prometheus.NewDesc("container_start_time_seconds", "[STABLE] Start time of the container since unix epoch in seconds", containerLabels, nil)
	containerLimit  = prometheus.NewDesc("container_swap_limit_bytes", "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems", containerLabels, nil)
	podCPU          = prometheus.NewDesc("pod_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds", podLabels, nil)
	podMemory       = prometheus.NewDesc("pod_memory_working_set_bytes", "[STABLE] Current working set of the pod in bytes", podLabels, nil)
	podSwap         = prometheus.NewDesc("pod_swap_usage_bytes", "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems", podLabels, nil)
	scrapeError     = prometheus.NewDesc("resource_scrape_error", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise", nil, nil)
)

var (
	runningPods       = prometheus.NewDesc("kubelet_running_pods", "[ALPHA] Number of pods that have a running pod sandbox", nil, nil)
	runningContainers = prometheus.NewDesc("kubelet_running_containers", "[ALPHA] Number of containers currently running", []string{"container_state"}, nil)
	nodeName          = prometheus.NewDesc("kubelet_node_name", "[ALPHA] The node's name. The count is always 1.", []string{"node"}, nil)
)

// collectKubelet makes those of upstream's metrics of the kubelet itself that others' dashboards and alerts are made of.
func (s *Server) collectKubelet(ctx context.Context, ch chan<- prometheus.Metric) error {
	all, err := s.usages(ctx)
	if err != nil {
		return err
	}
	states := map[string]float64{}
	for _, u := range all {
		for _, c := range containerStatuses(u.pod) {
			switch {
			case c.State.Running != nil:
				states["running"]++
			case c.State.Terminated != nil:
				states["exited"]++
			}
		}
	}
	ch <- prometheus.MustNewConstMetric(nodeName, prometheus.GaugeValue, 1, s.cfg.NodeName)
	ch <- prometheus.MustNewConstMetric(runningPods, prometheus.GaugeValue, float64(len(all)))
	for state, count := range states {
		ch <- prometheus.MustNewConstMetric(runningContainers, prometheus.GaugeValue, count, state)
	}
	s.collectClaims(all, ch)
	return nil
}

// collectResources makes the metrics of /metrics/resource, by which a metrics-server scales.
func (s *Server) collectResources(ctx context.Context, ch chan<- prometheus.Metric) error {
	all, err := s.usages(ctx)
	if err != nil {
		s.cfg.Log.Error("resource metrics could not be read", "err", err)
		ch <- prometheus.MustNewConstMetric(scrapeError, prometheus.GaugeValue, 1)
		return nil
	}
	u := s.host.read(s.cfg.Now())
	at := func(t time.Time, desc *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.NewMetricWithTimestamp(t, prometheus.MustNewConstMetric(desc, kind, v, labels...))
	}
	at(u.at, nodeCPU, prometheus.CounterValue, float64(u.cpu)/1e9)
	at(u.at, nodeMemory, prometheus.GaugeValue, float64(u.workingSet))
	at(u.at, nodeSwap, prometheus.GaugeValue, float64(u.swapUsed))
	for _, p := range all {
		for _, c := range p.GetLinux().GetContainers() {
			name := c.GetAttributes().GetMetadata().GetName()
			labels := []string{name, p.pod.Name, p.pod.Namespace}
			if start := startOf(p.pod, name); !start.IsZero() {
				ch <- prometheus.MustNewConstMetric(containerStart, prometheus.GaugeValue, float64(start.UnixNano())/1e9, labels...)
			}
			use(at, c.GetCpu(), c.GetMemory(), containerCPU, containerMemory, labels)
			if v := c.GetSwap().GetSwapUsageBytes(); v != nil {
				t, used := time.Unix(0, c.GetSwap().GetTimestamp()), float64(v.GetValue())
				at(t, containerSwap, prometheus.GaugeValue, used, labels...)
				if left := c.GetSwap().GetSwapAvailableBytes(); left != nil {
					at(t, containerLimit, prometheus.GaugeValue, used+float64(left.GetValue()), labels...)
				}
			}
		}
		if swap := podStats(p).Swap; swap != nil {
			at(swap.Time.Time, podSwap, prometheus.GaugeValue, float64(*swap.SwapUsageBytes), p.pod.Name, p.pod.Namespace)
		}
		use(at, p.GetLinux().GetCpu(), p.GetLinux().GetMemory(), podCPU, podMemory, []string{p.pod.Name, p.pod.Namespace})
	}
	ch <- prometheus.MustNewConstMetric(scrapeError, prometheus.GaugeValue, 0)
	return nil
}

func use(at func(time.Time, *prometheus.Desc, prometheus.ValueType, float64, ...string), cpu *cri.CpuUsage, memory *cri.MemoryUsage, cpuDesc, memoryDesc *prometheus.Desc, labels []string) {
	if v := cpu.GetUsageCoreNanoSeconds(); v != nil {
		at(time.Unix(0, cpu.GetTimestamp()), cpuDesc, prometheus.CounterValue, float64(v.GetValue())/1e9, labels...)
	}
	if v := memory.GetWorkingSetBytes(); v != nil {
		at(time.Unix(0, memory.GetTimestamp()), memoryDesc, prometheus.GaugeValue, float64(v.GetValue()), labels...)
	}
}

// collectCadvisor makes the metrics of /metrics/cadvisor of those of the CRI, which have cAdvisor's names.
func (s *Server) collectCadvisor(ctx context.Context, ch chan<- prometheus.Metric) error {
	descriptions := map[string]*prometheus.Desc{}
	for _, d := range s.cfg.Descriptors {
		descriptions[d.GetName()] = prometheus.NewDesc(d.GetName(), d.GetHelp(), d.GetLabelKeys(), nil)
	}
	pods, err := s.cfg.Metrics(ctx)
	if err != nil {
		return err
	}
	var failed error
	emit := func(metrics []*cri.Metric) {
		for _, m := range metrics {
			kind := prometheus.GaugeValue
			if m.GetMetricType() == cri.MetricType_COUNTER {
				kind = prometheus.CounterValue
			}
			desc := descriptions[m.GetName()]
			if desc == nil {
				continue
			}
			c, err := prometheus.NewConstMetric(desc, kind, float64(m.GetValue().GetValue()), m.GetLabelValues()...)
			if err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			ch <- c
		}
	}
	for _, p := range pods {
		emit(p.GetMetrics())
		for _, c := range p.GetContainerMetrics() {
			emit(c.GetMetrics())
		}
	}
	return failed
}
