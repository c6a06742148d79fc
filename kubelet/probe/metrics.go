package probe

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/probe"
)

// metrics are upstream's of /metrics/probes, by their names.
type metrics struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics() metrics {
	return metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Subsystem: "prober", Name: "probe_total",
			Help: "Cumulative number of a liveness, readiness or startup probe for a container by result.",
		}, []string{"probe_type", "result", "container", "pod", "namespace", "pod_uid"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Subsystem: "prober", Name: "probe_duration_seconds",
			Help: "Duration in seconds for a probe response.",
		}, []string{"probe_type", "container", "pod", "namespace"}),
	}
}

// Collectors returns the metrics, for a registry.
func (m *Manager) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.metrics.total, m.metrics.duration}
}

func (m metrics) count(w *worker, result probe.Result, took time.Duration) {
	name := map[probe.Result]string{probe.Success: "successful", probe.Failure: "failed"}[result]
	if name == "" {
		name = "unknown"
	}
	c := w.container
	m.total.WithLabelValues(w.kind.String(), name, c.Container.Name, c.Pod.Name, c.Pod.Namespace, string(c.Pod.UID)).Inc()
	if result == probe.Success {
		m.duration.WithLabelValues(w.kind.String(), c.Container.Name, c.Pod.Name, c.Pod.Namespace).Observe(took.Seconds())
	}
}

// forget removes the series of a pod.
func (m metrics) forget(pod *v1.Pod) {
	m.total.DeletePartialMatch(prometheus.Labels{"pod_uid": string(pod.UID)})
	m.duration.DeletePartialMatch(prometheus.Labels{"pod": pod.Name, "namespace": pod.Namespace})
}
