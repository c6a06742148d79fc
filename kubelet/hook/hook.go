// Package hook runs the lifecycle hooks of containers, postStart and preStop, as upstream does (pkg/kubelet/lifecycle). It also
// connects to a port for tcpSocket, which the API takes and no kubelet has ever run.
package hook

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/probe"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
)

// userAgent is what upstream's kubelet of the version that this one follows calls itself.
const userAgent = "kube-lifecycle/1.36"

// maxBody is how much of an answer is read, in bytes.
const maxBody = 10 << 10

// Config is what a Runner needs. All of it is required.
type Config struct {
	// Exec runs a command in a container until it ends or ctx does, which kills it.
	Exec func(ctx context.Context, id string, command []string) (output []byte, status int32, err error)
	// Event reports what a person should know of a pod.
	Event func(pod *v1.Pod, eventType, reason, message string)
}

// A Runner runs hooks. It may be used concurrently.
type Runner struct {
	cfg    Config
	client *http.Client
}

// New returns a Runner.
func New(cfg Config) *Runner {
	return &Runner{cfg: cfg, client: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // as upstream: a container's certificate is nobody's
		DialContext:     probe.ProbeDialer().DialContext, DisableKeepAlives: true,
	}}}
}

// Run runs a handler for a container and returns when it has ended, or with ctx. The message of its error is that of the events
// FailedPostStartHook and FailedPreStopHook.
func (r *Runner) Run(ctx context.Context, h *v1.LifecycleHandler, pod *v1.Pod, c *v1.Container, id, podIP string) error {
	failed := func(what string, err error) error {
		return fmt.Errorf("%s for Container %q in Pod %q failed - error: %w", what, c.Name, fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID), err)
	}
	switch {
	case h.Exec != nil:
		what := fmt.Sprintf("Exec lifecycle hook (%v)", h.Exec.Command)
		output, status, err := r.cfg.Exec(ctx, id, h.Exec.Command)
		if err == nil && status != 0 {
			err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(h.Exec.Command, " "), status, output)
		}
		if err != nil {
			return fmt.Errorf("%w, message: %q", failed(what, err), output)
		}
	case h.HTTPGet != nil:
		if err := r.get(ctx, h.HTTPGet, pod, c, podIP); err != nil {
			return failed(fmt.Sprintf("HTTP lifecycle hook (%s)", h.HTTPGet.Path), err)
		}
	case h.Sleep != nil:
		if err := sleep(ctx, time.Duration(h.Sleep.Seconds)*time.Second); err != nil {
			return failed(fmt.Sprintf("Sleep lifecycle hook (%d)", h.Sleep.Seconds), err)
		}
	case h.TCPSocket != nil:
		address, err := socketAddress(h.TCPSocket, c, podIP)
		if err == nil {
			err = connect(ctx, address)
		}
		if err != nil {
			return failed(fmt.Sprintf("TCP lifecycle hook (%s)", h.TCPSocket.Port.String()), err)
		}
	default:
		//lint:ignore ST1005 upstream's words
		return fmt.Errorf("Cannot run handler: invalid handler: %v", h)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return errors.New("container terminated before sleep hook finished")
	case <-timer.C:
		return nil
	}
}

func socketAddress(s *v1.TCPSocketAction, c *v1.Container, podIP string) (string, error) {
	port, err := probe.ResolveContainerPort(s.Port, c)
	if err != nil {
		return "", err
	}
	host := cmp.Or(s.Host, podIP)
	if host == "" {
		return "", errNoAddress
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}

// connect makes a connection and ends it, as a probe does.
func connect(ctx context.Context, address string) error {
	conn, err := probe.ProbeDialer().DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	_ = conn.Close() // it was there: that is all
	return nil
}

var errNoAddress = errors.New("failed to find networking container: the pod has no address")

// get asks once, and once more without TLS if it turns out that the other side has none.
func (r *Runner) get(ctx context.Context, g *v1.HTTPGetAction, pod *v1.Pod, c *v1.Container, podIP string) error {
	if g.Host == "" && podIP == "" {
		return errNoAddress
	}
	req, err := httpprobe.NewRequestForHTTPGetAction(g, c, podIP, "lifecycle")
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(g.HTTPHeaders, func(h v1.HTTPHeader) bool { return strings.EqualFold(h.Name, "User-Agent") }) {
		req.Header.Set("User-Agent", userAgent)
	}
	err = r.do(req.WithContext(ctx))
	var fault *url.Error
	if !errors.As(err, &fault) || !strings.Contains(fault.Err.Error(), "server gave HTTP response to HTTPS client") {
		return err
	}
	plain := req.Clone(ctx)
	plain.URL.Scheme = "http"
	plain.Header.Del("Authorization")
	if r.do(plain) != nil {
		return err
	}
	r.cfg.Event(pod, v1.EventTypeWarning, "LifecycleHTTPFallback", fmt.Sprintf("request to HTTPS lifecycle hook %s got HTTP response, retry with HTTP succeeded", req.URL.Host))
	return nil
}

// do succeeds with any answer, whatever its status: so does upstream.
func (r *Runner) do(req *http.Request) error {
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody)) // it has answered: what it says does not matter
	return nil
}
