// Package metrics holds the numbers that the daemon tells of itself, in Prometheus form.
//
// There is one Metrics per daemon; it is made in main and handed to those who have something to count. Every method does
// nothing on a nil *Metrics, so that a part that is used without a daemon needs no second way. What pods and containers
// use is not here: that is the CRI's ListPodSandboxMetrics.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metrics counts what the daemon does.
type Metrics struct {
	registry *prometheus.Registry

	rpcs        *prometheus.HistogramVec
	rpcRunning  *prometheus.GaugeVec
	rpcFailures *prometheus.CounterVec

	pulls        *prometheus.HistogramVec
	pulledBytes  prometheus.Counter
	starts       *prometheus.CounterVec
	execs        *prometheus.CounterVec
	subscribers  prometheus.Gauge
	subscribersX prometheus.Counter
	network      *prometheus.HistogramVec
}

// Buckets in seconds. Calls on the start path take milliseconds, so the default's first bucket of 5 ms would hide them.
var (
	callBuckets = []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 120}
	pullBuckets = []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900}
)

// New returns Metrics that know the version of the daemon.
func New(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		rpcs: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_cri_call_duration_seconds",
			Help:    "How long calls of the CRI took, by method. A streaming call counts until its end.",
			Buckets: callBuckets,
		}, []string{"method"}),
		rpcRunning: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "berth_cri_calls_running",
			Help: "Calls of the CRI that are being worked on, by method.",
		}, []string{"method"}),
		rpcFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_cri_call_failures_total",
			Help: "Calls of the CRI that were answered with an error, by method and gRPC code.",
		}, []string{"method", "code"}),
		pulls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_image_pull_duration_seconds",
			Help:    "How long pulls of images took, by result (ok, error).",
			Buckets: pullBuckets,
		}, []string{"result"}),
		pulledBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_image_pulled_bytes_total",
			Help: "Size on disk of the images that were asked for and pulled or found present.",
		}),
		execs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_execs_total",
			Help: "Commands started in containers, by what started them: enter, or libcontainer where enter cannot.",
		}, []string{"by"}),
		starts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_container_starts_total",
			Help: "Starts of containers, by result (ok, error).",
		}, []string{"result"}),
		subscribers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_event_subscribers",
			Help: "Clients that listen to container events.",
		}),
		subscribersX: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "berth_event_subscribers_cut_off_total",
			Help: "Clients that were cut off because they read container events too slowly.",
		}),
		network: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "berth_network_operation_duration_seconds",
			Help:    "How long the network took for a sandbox, by operation (attach, detach) and result (ok, error).",
			Buckets: callBuckets,
		}, []string{"operation", "result"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "berth_build_info",
		Help:        "Always 1; the label tells the version.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build, m.rpcs, m.rpcRunning, m.rpcFailures, m.pulls, m.pulledBytes, m.starts, m.execs, m.subscribers, m.subscribersX, m.network,
	)
	return m
}

// CallBegun counts a call of the CRI from now until the returned function is called with the name of its gRPC code; "OK"
// is a success.
func (m *Metrics) CallBegun(method string) (ended func(code string, took time.Duration)) {
	if m == nil {
		return func(string, time.Duration) {}
	}
	running := m.rpcRunning.WithLabelValues(method)
	running.Inc()
	return func(code string, took time.Duration) {
		running.Dec()
		m.rpcs.WithLabelValues(method).Observe(took.Seconds())
		if code != "OK" {
			m.rpcFailures.WithLabelValues(method, code).Inc()
		}
	}
}

// ImagePulled counts a pull and, if it succeeded, the size of the image.
func (m *Metrics) ImagePulled(took time.Duration, bytes uint64, err error) {
	if m == nil {
		return
	}
	m.pulls.WithLabelValues(result(err)).Observe(took.Seconds())
	if err == nil {
		m.pulledBytes.Add(float64(bytes))
	}
}

// ExecStarted counts a command started in a container.
func (m *Metrics) ExecStarted(byEnter bool) {
	if m == nil {
		return
	}
	by := "libcontainer"
	if byEnter {
		by = "enter"
	}
	m.execs.WithLabelValues(by).Inc()
}

// ContainerStarted counts a start.
func (m *Metrics) ContainerStarted(err error) {
	if m == nil {
		return
	}
	m.starts.WithLabelValues(result(err)).Inc()
}

// SubscriberJoined counts a listener to events until the returned function is called; cutOff says that it was too slow.
func (m *Metrics) SubscriberJoined() (left func(cutOff bool)) {
	if m == nil {
		return func(bool) {}
	}
	m.subscribers.Inc()
	return func(cutOff bool) {
		m.subscribers.Dec()
		if cutOff {
			m.subscribersX.Inc()
		}
	}
}

// NetworkAttached tells how long the attachment of a sandbox to the network took.
func (m *Metrics) NetworkAttached(took time.Duration, err error) { m.networkDone("attach", took, err) }

// NetworkDetached tells how long it took to take a sandbox off the network.
func (m *Metrics) NetworkDetached(took time.Duration, err error) { m.networkDone("detach", took, err) }

func (m *Metrics) networkDone(operation string, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.network.WithLabelValues(operation, result(err)).Observe(took.Seconds())
}

// Gauge registers a number that is read when somebody asks for the metrics, such as the count of running pods.
func (m *Metrics) Gauge(name, help string, read func() float64) {
	if m == nil {
		return
	}
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
