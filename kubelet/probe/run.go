package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/probe"
	grpcprobe "k8s.io/kubernetes/pkg/probe/grpc"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
	tcpprobe "k8s.io/kubernetes/pkg/probe/tcp"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

const (
	// userAgent is what upstream's kubelet of the version that this one follows calls itself.
	userAgent = "kube-probe/1.36"
	// maxOutput is how much of a command's output is looked at, in bytes, as upstream does.
	maxOutput = 10 << 10
)

// A runner carries out single probes.
type runner struct {
	exec Exec
	http httpprobe.Prober
	tcp  tcpprobe.Prober
	grpc grpcprobe.Prober
}

func newRunner(exec Exec) runner {
	const otherHosts = false // redirects to them are not followed
	return runner{exec: exec, http: httpprobe.New(otherHosts), tcp: tcpprobe.New(), grpc: grpcprobe.New()}
}

// probe asks once. The error is for what says nothing about the container.
func (r runner) probe(ctx context.Context, p *v1.Probe, t Target) (probe.Result, string, error) {
	timeout := time.Duration(max(p.TimeoutSeconds, 1)) * time.Second
	switch {
	case p.Exec != nil:
		return r.command(ctx, t, p.Exec.Command, timeout)
	case p.HTTPGet != nil:
		req, err := httpprobe.NewRequestForHTTPGetAction(p.HTTPGet, t.Container, t.PodIP, "probe")
		if err != nil {
			return probe.Unknown, "", err
		}
		if !slices.ContainsFunc(p.HTTPGet.HTTPHeaders, func(h v1.HTTPHeader) bool { return strings.EqualFold(h.Name, "User-Agent") }) {
			req.Header.Set("User-Agent", userAgent)
		}
		return r.http.Probe(req.WithContext(ctx), timeout)
	case p.TCPSocket != nil:
		port, err := probe.ResolveContainerPort(p.TCPSocket.Port, t.Container)
		if err != nil {
			return probe.Unknown, "", err
		}
		host := p.TCPSocket.Host
		if host == "" {
			host = t.PodIP
		}
		return r.tcp.Probe(host, port, timeout)
	case p.GRPC != nil:
		service := ""
		if p.GRPC.Service != nil {
			service = *p.GRPC.Service
		}
		return r.grpc.Probe(t.PodIP, service, int(p.GRPC.Port), timeout)
	}
	return probe.Unknown, "", fmt.Errorf("missing probe handler for container %s", t.Container.Name)
}

// command runs a command in the container. Its variables are those that the container's own list gives a plain value.
func (r runner) command(ctx context.Context, t Target, command []string, timeout time.Duration) (probe.Result, string, error) {
	command = expand(command, t.Container.Env)
	output, status, err := r.exec(ctx, t.ID, command, timeout)
	if errors.Is(err, context.DeadlineExceeded) {
		return probe.Failure, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(command, " "), timeout), nil
	}
	if err != nil {
		return probe.Unknown, "", err
	}
	said := string(output[:min(len(output), maxOutput)])
	if status != 0 {
		return probe.Failure, said, nil
	}
	return probe.Success, said, nil
}

func expand(command []string, env []v1.EnvVar) []string {
	values := map[string]string{}
	for _, e := range env {
		values[e.Name] = e.Value
	}
	mapping := expansion.MappingFuncFor(values)
	expanded := make([]string, len(command))
	for i, word := range command {
		expanded[i] = expansion.Expand(word, mapping)
	}
	return expanded
}
