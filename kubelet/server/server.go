// Package server is the kubelet part's doors: the read view of the core API with the verbs of pods, for berth's commands and
// for kubectl, and the kubelet's own port.
//
//	/version /healthz /livez /readyz
//	/api /api/v1 /apis /apis/metrics.k8s.io/v1beta1        discovery
//	/api/v1[/namespaces/NS]/KIND[/NAME]                    get, list, watch; also as tables
//	/api/v1/namespaces/NS/pods/NAME                        and delete, as of configmaps, secrets and persistentvolumeclaims
//	/api/v1/namespaces/NS/pods/NAME/{log,exec,attach,portforward}
//	/apis/metrics.k8s.io/v1beta1/{nodes,[namespaces/NS/]pods}[/NAME]
//	/berth/v1/apply /berth/v1/namespaces/NS/pods/NAME/restart
//
// It is served to whoever may open the unix socket, and on TLS to who has the token (auth.go). It is no API server: nothing
// is written but by the verbs above, and what there is follows from files, from what was applied, and from what runs.
package server

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/stream"
	"github.com/berth-node/berth/kubelet"
	"github.com/berth-node/berth/kubelet/event"
	"github.com/berth-node/berth/kubelet/feed"
	"github.com/berth-node/berth/kubelet/volume"
	"github.com/berth-node/berth/runtime"
)

// Kubelet is what the doors need of package kubelet's Kubelet.
type Kubelet interface {
	Pods() *feed.Feed[*v1.Pod]
	DeletePod(ctx context.Context, namespace, name string, o kubelet.DeleteOptions) (*v1.Pod, error)
	Restart(ctx context.Context, namespace, name, container string, grace *int64) error
	ContainerID(namespace, pod, container string, previous bool) (string, error)
	SandboxID(namespace, pod string) (string, error)
}

// Objects is what is declared besides pods, and the way to declare.
type Objects interface {
	ConfigMaps() *feed.Feed[*v1.ConfigMap]
	Secrets() *feed.Feed[*v1.Secret]
	Claims() *feed.Feed[*v1.PersistentVolumeClaim]
	Volumes() *feed.Feed[*v1.PersistentVolume]
	// Apply declares what is in the documents, all of it or nothing.
	Apply(ctx context.Context, r ApplyRequest) (ApplyResult, error)
	// Delete takes back what was applied. kind is "ConfigMap", "Secret", "PersistentVolumeClaim" or "PersistentVolume".
	Delete(ctx context.Context, kind, namespace, name string) error
}

// An ApplyRequest is what is to be declared.
type ApplyRequest struct {
	Documents []Document `json:"documents"`
	// Namespace, if any, is the one that all of it must be in, and the one of what names none.
	Namespace string `json:"namespace,omitempty"`
	// DryRun only says what would be done.
	DryRun bool `json:"dryRun,omitempty"`
}

// A Document is a file with manifests.
type Document struct {
	File string `json:"file"` // its name, for what is said about it
	Data []byte `json:"data"`
}

// ApplyResult is what became of documents.
type ApplyResult struct {
	Applied  []Applied `json:"applied"`
	Warnings []string  `json:"warnings,omitempty"`
}

// Applied is what became of one object: "created", "configured" or "unchanged".
type Applied struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Action    string `json:"action"`
}

// Config is what a Server needs. All fields are required.
type Config struct {
	NodeName string
	Version  string // of berth
	Kubelet  Kubelet
	Objects  Objects
	Events   *event.Store
	// Container finds a container of the runtime: runtime.Runtime's.
	Container func(ctx context.Context, id string) (runtime.Container, error)
	Sessions  *stream.Sessions
	// Stats and Metrics are the CRI's, of all pods of the node; Descriptors describe the Metrics.
	Stats       func(ctx context.Context) ([]*cri.PodSandboxStats, error)
	Metrics     func(ctx context.Context) ([]*cri.PodSandboxMetrics, error)
	Descriptors []*cri.MetricDescriptor
	// Volumes measures those of a pod, Files what else it has beside layers and logs, and LogDir is where the logs of a container are.
	Volumes func(pod *v1.Pod) ([]volume.Usage, error)
	Files   func(pod *v1.Pod) (volume.Usage, error)
	LogDir  func(pod *v1.Pod, container string) string
	// Daemon are the daemon's own metrics, and Probes those of the probes.
	Daemon prometheus.Gatherer
	Probes prometheus.Gatherer
	// Dir is on the file system that images and containers are on.
	Dir string
	// Node is the node as it is now.
	Node func() *v1.Node
	// Configz is the configuration in force, for /configz.
	Configz any
	Now     func() time.Time
	Log     *slog.Logger
}

// A Server answers the requests of both doors.
type Server struct {
	cfg       Config
	resources map[string]*resource // of /api/v1, by their plural
	node      *feed.Feed[*v1.Node] // of the one node
	host      *host
	between   time.Duration // two readings that make a rate

	measuring sync.Mutex
	measured  map[types.UID]measured
}

// New returns a Server. API and Port are its handlers.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, node: feed.New[*v1.Node](uint64(cfg.Now().UnixMicro()), 16), host: &host{proc: "/proc", dir: cfg.Dir}, between: rateTime}
	s.resources = s.coreResources()
	return s
}

// API is the handler of the core API.
func (s *Server) API() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fail(w, errNoPath(r)) })
	s.handleDiscovery(mux)
	const inNamespace = "/api/v1/namespaces/{namespace}/{resource}"
	mux.HandleFunc("GET /api/v1/{resource}", s.handleList)
	mux.HandleFunc("GET "+inNamespace, s.handleList)
	mux.HandleFunc("GET /api/v1/{resource}/{name}", s.handleGet)
	mux.HandleFunc("GET "+inNamespace+"/{name}", s.handleGet)
	mux.HandleFunc("DELETE "+inNamespace+"/{name}", s.handleDelete)
	mux.HandleFunc("DELETE /api/v1/{resource}/{name}", s.handleDelete)
	const pod = "/api/v1/namespaces/{namespace}/pods/{name}"
	// kubectl gets a subresource before it patches it.
	for _, path := range []string{"PUT " + inNamespace + "/{name}", "PATCH " + inNamespace + "/{name}", pod + "/resize", pod + "/ephemeralcontainers"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { fail(w, errDeclared()) })
	}
	mux.HandleFunc("GET "+pod+"/log", s.handleLog)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		mux.HandleFunc(method+" "+pod+"/exec", s.handleExec)
		mux.HandleFunc(method+" "+pod+"/attach", s.handleAttach)
		mux.HandleFunc(method+" "+pod+"/portforward", s.handlePortForward)
	}
	s.handleMetricsAPI(mux)
	mux.HandleFunc("POST /berth/v1/apply", s.handleApply)
	mux.HandleFunc("POST /berth/v1/namespaces/{namespace}/pods/{name}/restart", s.handleRestart)
	return mux
}
