package server

import (
	"net/http"
	"slices"

	v1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// handleMetricsAPI serves metrics.k8s.io, by which "kubectl top" lives.
func (s *Server) handleMetricsAPI(mux *http.ServeMux) {
	const base = "GET /apis/" + metricsGroup + "/" + metricsVersion
	mux.HandleFunc(base+"/pods", s.listPodMetrics)
	mux.HandleFunc(base+"/namespaces/{namespace}/pods", s.listPodMetrics)
	mux.HandleFunc(base+"/namespaces/{namespace}/pods/{name}", s.getPodMetrics)
	mux.HandleFunc(base+"/nodes", func(w http.ResponseWriter, r *http.Request) {
		n, err := s.nodeMetrics(r)
		if err != nil {
			fail(w, err)
			return
		}
		send(w, http.StatusOK, metrics.NodeMetricsList{TypeMeta: metricsType("NodeMetricsList"), Items: []metrics.NodeMetrics{n}})
	})
	mux.HandleFunc(base+"/nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		n, err := s.nodeMetrics(r)
		if err == nil && n.Name != r.PathValue("name") {
			err = errNotFound("nodes", r.PathValue("name"))
		}
		if err != nil {
			fail(w, err)
			return
		}
		send(w, http.StatusOK, n)
	})
}

func metricsType(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: metricsGroup + "/" + metricsVersion, Kind: kind}
}

func (s *Server) listPodMetrics(w http.ResponseWriter, r *http.Request) {
	selector, err := labels.Parse(r.FormValue("labelSelector"))
	if err != nil {
		fail(w, errBadRequest("unable to parse label selector: %v", err))
		return
	}
	all, err := s.rated(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	list := metrics.PodMetricsList{TypeMeta: metricsType("PodMetricsList"), Items: []metrics.PodMetrics{}}
	for _, u := range all {
		if namespace := r.PathValue("namespace"); (namespace == "" || u.pod.Namespace == namespace) && selector.Matches(labels.Set(u.pod.Labels)) {
			list.Items = append(list.Items, podMetrics(u))
		}
	}
	send(w, http.StatusOK, list)
}

func (s *Server) getPodMetrics(w http.ResponseWriter, r *http.Request) {
	all, err := s.rated(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	i := slices.IndexFunc(all, func(u usage) bool {
		return u.pod.Namespace == r.PathValue("namespace") && u.pod.Name == r.PathValue("name")
	})
	if i < 0 {
		fail(w, errNotFound("podmetrics."+metricsGroup, r.PathValue("namespace")+"/"+r.PathValue("name")))
		return
	}
	send(w, http.StatusOK, podMetrics(all[i]))
}

func podMetrics(u usage) metrics.PodMetrics {
	out := metrics.PodMetrics{
		TypeMeta:   metricsType("PodMetrics"),
		ObjectMeta: metav1.ObjectMeta{Name: u.pod.Name, Namespace: u.pod.Namespace, Labels: u.pod.Labels, CreationTimestamp: u.pod.CreationTimestamp},
		Timestamp:  moment(u.GetLinux().GetCpu().GetTimestamp()), Window: metav1.Duration{Duration: rateTime},
		Containers: []metrics.ContainerMetrics{},
	}
	for _, c := range u.GetLinux().GetContainers() {
		out.Containers = append(out.Containers, metrics.ContainerMetrics{
			Name: c.GetAttributes().GetMetadata().GetName(), Usage: resources(c.GetCpu(), c.GetMemory()),
		})
	}
	return out
}

func resources(cpu *cri.CpuUsage, memory *cri.MemoryUsage) v1.ResourceList {
	return resourceList(cpu.GetUsageNanoCores().GetValue(), memory.GetWorkingSetBytes().GetValue())
}

func resourceList(nanoCores, bytes uint64) v1.ResourceList {
	return v1.ResourceList{
		v1.ResourceCPU:    *quantity.NewScaledQuantity(int64(nanoCores), quantity.Nano),
		v1.ResourceMemory: *quantity.NewQuantity(int64(bytes), quantity.BinarySI),
	}
}

func (s *Server) nodeMetrics(r *http.Request) (metrics.NodeMetrics, error) {
	u, err := s.ratedNode(r.Context())
	if err != nil {
		return metrics.NodeMetrics{}, err
	}
	var cores uint64
	if u.nanoCores != nil {
		cores = *u.nanoCores
	}
	return metrics.NodeMetrics{
		TypeMeta:   metricsType("NodeMetrics"),
		ObjectMeta: metav1.ObjectMeta{Name: s.cfg.NodeName, CreationTimestamp: s.cfg.Node().CreationTimestamp},
		Timestamp:  metav1.NewTime(u.at), Window: metav1.Duration{Duration: rateTime}, Usage: resourceList(cores, u.workingSet),
	}, nil
}
