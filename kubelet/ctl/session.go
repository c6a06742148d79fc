package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	clientspdy "k8s.io/client-go/transport/spdy"
	clientexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// An upgrade makes one connection to the daemon a session of SPDY.
type upgrade struct {
	client *Client
	conn   net.Conn
}

// RoundTrip sends the request on a connection of its own, which it keeps.
func (u *upgrade) RoundTrip(r *http.Request) (*http.Response, error) {
	conn, err := u.client.dial(r.Context())
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	r.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	if err := r.Write(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, r)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	u.conn = &buffered{Conn: conn, in: in}
	return resp, nil
}

// NewConnection makes a session of the answer.
func (u *upgrade) NewConnection(resp *http.Response) (httpstream.Connection, error) {
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer u.conn.Close()
		return nil, statusError(resp)
	}
	return spdy.NewClientConnection(u.conn)
}

// dial opens the session of a port-forward.
func (u *upgrade) dial(ctx context.Context, path string, protocols ...string) (httpstream.Connection, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://berth"+path, nil)
	if err != nil {
		return nil, "", err
	}
	for _, p := range protocols {
		r.Header.Add(httpstream.HeaderProtocolVersion, p)
	}
	resp, err := u.RoundTrip(r)
	if err != nil {
		return nil, "", err
	}
	conn, err := u.NewConnection(resp)
	return conn, resp.Header.Get(httpstream.HeaderProtocolVersion), err
}

// buffered is a connection of which something was read ahead.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// SessionOptions are those of "berth exec" and "berth attach".
type SessionOptions struct {
	Namespace, Container string
	Stdin, TTY           bool
	Quiet                bool
	In                   io.Reader
	Out, Err             io.Writer
}

// Exec runs a command in a container of a pod. A command that fails is an *Exit with its status.
func (c *Client) Exec(ctx context.Context, pod string, command []string, o SessionOptions) error {
	return c.session(ctx, pod, "exec", url.Values{"command": command}, o)
}

// Attach connects to the command of a container.
func (c *Client) Attach(ctx context.Context, pod string, o SessionOptions) error {
	return c.session(ctx, pod, "attach", url.Values{}, o)
}

func (c *Client) session(ctx context.Context, name, kind string, query url.Values, o SessionOptions) error {
	pod, err := c.pod(ctx, o.Namespace, name)
	if err != nil {
		return err
	}
	container, err := c.container(pod, &o)
	if err != nil {
		return err
	}
	if kind == "attach" {
		spec := containerOf(pod, container)
		switch {
		case o.TTY && !spec.TTY:
			o.TTY = false
			fmt.Fprintf(o.Err, "error: Unable to use a TTY - container %s did not allocate one\n", container)
		case !o.TTY && spec.TTY:
			o.TTY = true // its output is that of a terminal
		}
		if o.Stdin && !spec.Stdin {
			o.Stdin = false
			fmt.Fprintf(o.Err, "error: Unable to use stdin - container %s does not read it\n", container)
		}
		if !o.Quiet {
			fmt.Fprintln(o.Err, "If you don't see a command prompt, try pressing enter.")
		}
	}
	query.Set("container", container)
	streams := remotecommand.StreamOptions{Stdout: o.Out, Tty: o.TTY}
	query.Set("stdout", "true")
	if o.Stdin {
		streams.Stdin = o.In
		query.Set("stdin", "true")
	}
	if o.TTY {
		query.Set("tty", "true")
		restore, sizes := o.terminal(ctx)
		defer restore()
		if sizes != nil {
			streams.TerminalSizeQueue = sizes
		}
	} else {
		streams.Stderr = o.Err
		query.Set("stderr", "true")
	}
	path := "/api/v1/namespaces/" + url.PathEscape(o.Namespace) + "/pods/" + url.PathEscape(name) + "/" + kind
	u := &upgrade{client: c}
	executor, err := remotecommand.NewSPDYExecutorForTransports(u, clientspdy.NewUpgraderForStreaming(u), http.MethodPost, &url.URL{Scheme: "http", Host: "berth", Path: path, RawQuery: query.Encode()})
	if err != nil {
		return err
	}
	return exitOf(executor.StreamWithContext(ctx, streams))
}

func exitOf(err error) error {
	var code clientexec.CodeExitError
	if errors.As(err, &code) {
		return &Exit{Code: code.ExitStatus(), Text: fmt.Sprintf("command terminated with exit code %d", code.ExitStatus())}
	}
	return err
}

// terminal makes the user's terminal the remote one's, if there is one, until restore.
func (o *SessionOptions) terminal(ctx context.Context) (restore func(), sizes *sizeQueue) {
	in, ok := o.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		fmt.Fprintln(o.Err, "Unable to use a TTY - input is not a terminal or the right kind of file")
		return func() {}, nil
	}
	was, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return func() {}, nil
	}
	q := &sizeQueue{ctx: ctx, terminal: in, changed: make(chan os.Signal, 1)}
	q.changed <- unix.SIGWINCH // the size now is the first one
	signal.Notify(q.changed, unix.SIGWINCH)
	return func() {
		signal.Stop(q.changed)
		_ = term.Restore(int(in.Fd()), was)
	}, q
}

// sizeQueue tells the sizes of a terminal.
type sizeQueue struct {
	ctx      context.Context
	terminal *os.File
	changed  chan os.Signal
}

func (q *sizeQueue) Next() *remotecommand.TerminalSize {
	select {
	case <-q.changed:
	case <-q.ctx.Done():
		return nil
	}
	width, height, err := term.GetSize(int(q.terminal.Fd()))
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}
}

// pod reads a pod.
func (c *Client) pod(ctx context.Context, namespace, name string) (*v1.Pod, error) {
	var pod v1.Pod
	err := c.get(ctx, call{path: "/api/v1/namespaces/" + url.PathEscape(namespace) + "/pods/" + url.PathEscape(name)}, &pod)
	return &pod, err
}

// defaultContainer is the annotation by which a pod says which of its containers is meant if none is named.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// container is the one that is asked for, or the one that is meant.
func (c *Client) container(pod *v1.Pod, o *SessionOptions) (string, error) {
	if o.Container != "" {
		if containerOf(pod, o.Container) == nil {
			return "", fmt.Errorf("container %s not found in pod %s", o.Container, pod.Name)
		}
		return o.Container, nil
	}
	name, guessed := meantContainer(pod)
	if guessed && !o.Quiet {
		fmt.Fprintf(o.Err, "Defaulted container %q out of: %s\n", name, containerNames(pod))
	}
	return name, nil
}

// meantContainer is the pod's default container, or the first one, which is a guess if there are several.
func meantContainer(pod *v1.Pod) (name string, guessed bool) {
	if name := pod.Annotations[defaultContainer]; name != "" && containerOf(pod, name) != nil {
		return name, false
	}
	others := len(pod.Spec.Containers) + len(pod.Spec.InitContainers) + len(pod.Spec.EphemeralContainers)
	return pod.Spec.Containers[0].Name, others > 1
}

func containerNames(pod *v1.Pod) string {
	var names []string
	for i := range pod.Spec.Containers {
		names = append(names, pod.Spec.Containers[i].Name)
	}
	for i := range pod.Spec.EphemeralContainers {
		names = append(names, pod.Spec.EphemeralContainers[i].Name+" (ephem)")
	}
	for i := range pod.Spec.InitContainers {
		names = append(names, pod.Spec.InitContainers[i].Name+" (init)")
	}
	return strings.Join(names, ", ")
}

func containerOf(pod *v1.Pod, name string) *v1.Container {
	for _, c := range allContainers(pod) {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// allContainers are the containers of a pod in the order of their start: init containers first.
func allContainers(pod *v1.Pod) (all []*v1.Container) {
	for i := range pod.Spec.InitContainers {
		all = append(all, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		all = append(all, &pod.Spec.Containers[i])
	}
	for i := range pod.Spec.EphemeralContainers {
		c := v1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		all = append(all, &c)
	}
	return all
}

// PortForward listens on ports of this machine and connects whoever comes to ports of a pod, until ctx ends. ports are
// "80", "8080:80", ":80" or with the name of a port of the pod.
func (c *Client) PortForward(ctx context.Context, name string, ports, addresses []string, o SessionOptions) error {
	pod, err := c.pod(ctx, o.Namespace, name)
	if err != nil {
		return err
	}
	if pod.Status.Phase != v1.PodRunning {
		return fmt.Errorf("unable to forward port because pod is not running. Current status=%v", pod.Status.Phase)
	}
	numbered := make([]string, len(ports))
	for i, p := range ports {
		if numbered[i], err = numberedPort(pod, p); err != nil {
			return err
		}
	}
	path := "/api/v1/namespaces/" + url.PathEscape(o.Namespace) + "/pods/" + url.PathEscape(name) + "/portforward"
	f, err := portforward.NewOnAddressesForStreaming(dialer(func(protocols ...string) (httpstream.Connection, string, error) {
		return (&upgrade{client: c}).dial(ctx, path, protocols...)
	}), addresses, numbered, ctx.Done(), make(chan struct{}), o.Out, o.Err)
	if err != nil {
		return err
	}
	return f.ForwardPorts()
}

type dialer func(protocols ...string) (httpstream.Connection, string, error)

func (d dialer) Dial(protocols ...string) (httpstream.Connection, string, error) {
	return d(protocols...)
}

// numberedPort puts the number of a container's port in the place of its name.
func numberedPort(pod *v1.Pod, port string) (string, error) {
	local, remote, both := strings.Cut(port, ":")
	if !both {
		remote = local
	}
	if remote == "" || strings.Trim(remote, "0123456789") == "" {
		return port, nil
	}
	for _, c := range allContainers(pod) {
		i := slices.IndexFunc(c.Ports, func(p v1.ContainerPort) bool { return p.Name == remote && p.Protocol != v1.ProtocolUDP })
		if i >= 0 && both {
			return fmt.Sprintf("%s:%d", local, c.Ports[i].ContainerPort), nil
		} else if i >= 0 {
			return fmt.Sprint(c.Ports[i].ContainerPort), nil
		}
	}
	return "", fmt.Errorf("pod '%s' does not have a named port '%s'", pod.Name, remote)
}
