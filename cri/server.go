// Package cri is the door through which a kubelet, crictl or critest uses berth: the Kubernetes Container Runtime
// Interface v1, RuntimeService and ImageService, over gRPC.
//
// A call goes through five steps and the door decides nothing in any of them: check the request (validate*.go), turn it
// into the runtime's words, call the runtime, turn the answer into the CRI's words (convert*.go), map the error to a gRPC
// code (errors.go). Logging, metrics and the mapping of errors happen once, in the interceptors (grpc.go).
//
//	server.go        the Server and its life
//	grpc.go          interceptors, calls.go those under way, socket.go the socket
//	sandbox.go       pod sandboxes        container.go   containers       exec.go   exec, attach, port forward
//	stats.go         usage of resources   metrics*.go    cAdvisor's metrics
//	image.go         images               status.go      the node         events.go container events
package cri

import (
	"log/slog"
	"sync/atomic"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/cgroups"
	"github.com/berth-node/berth/internal/metrics"
	"github.com/berth-node/berth/internal/stream"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/image"
)

// Config of a Server.
type Config struct {
	// Runtime, Images and Streams do the work; required.
	Runtime *runtime.Runtime
	Images  *image.Store
	Streams *stream.Server
	// Cgroups finds the processes of a container for its metrics; nil leaves those out.
	Cgroups *cgroups.Host
	// Version of berth, for Version and Status.
	Version string
	// RootDir and StateDir are where containers' root filesystems and run state are; Status shows them, and critest
	// looks there for what the file system can do.
	RootDir, StateDir string
	// Settings are shown by a verbose Status under "config"; whatever marshals to a JSON object, or nil.
	Settings map[string]any
	// OwnPods says whether the node runs pods of its own, beside which a kubelet has no place; nil is no.
	OwnPods func() bool
	// Log gets one line per failed call; nil discards.
	Log *slog.Logger
	// Metrics counts calls; nil does not.
	Metrics *metrics.Metrics
}

// A Server answers the calls of both services.
//
// It answers Unavailable until SetReady. It holds nothing that has to be closed; calls end with their contexts.
type Server struct {
	// Not the Unimplemented ones: a call that is missing here must not compile.
	cri.UnsafeRuntimeServiceServer
	cri.UnsafeImageServiceServer

	cfg   Config
	log   *slog.Logger
	ready atomic.Bool
	rates *cpuRates
	calls calls
}

// New returns a Server that is not ready.
func New(cfg Config) *Server {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, log: log, rates: newCPURates()}
}

// SetReady lets calls in. Call it when the runtime has recovered what was there before the start.
func (s *Server) SetReady() { s.ready.Store(true) }

// Register adds both services to g, which should be of NewGRPCServer.
func (s *Server) Register(g *grpc.Server) {
	cri.RegisterRuntimeServiceServer(g, s)
	cri.RegisterImageServiceServer(g, s)
}
