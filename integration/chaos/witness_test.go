//go:build integration

package chaos

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// Ports of the host: of the witness, of the warm-up, and of those that are driven.
const (
	witnessPort = 12301
	warmPort    = 12302
	drivenPort  = 12303
)

func withPort(port int32) func(*cri.PodSandboxConfig) {
	return func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: port}}
	}
}

// witnesses run through all kills: one that writes numbers and serves a host port, one that answers on its input, one on its terminal, one in a
// pod with a PID namespace of its own, and one that is created and never started.
type witnesses struct {
	rig     *rig
	pods    []*harness.Pod
	seen    map[string]facts // by container
	counter *harness.Container
	echo    *harness.Container
	screen  *harness.Container
	sharing *harness.Container
	created *harness.Container
	all     []*harness.Container
	written int // lines that were in the counter's log
	gaps    bool
}

// facts are what may not change while a container runs.
type facts struct {
	pid       int
	began     string // of the process
	startedAt int64
	createdAt int64
	state     cri.ContainerState
	ips       string
}

// counterPause is what the witness that counts does between two numbers.
const counterPause = " sleep 0.1"

func newWitnesses(t *testing.T, r *rig) *witnesses {
	t.Helper()
	w := &witnesses{rig: r, seen: map[string]facts{}}
	n := r.node
	first := n.RunPod(t, "witness", withPort(witnessPort))
	w.counter = first.Sh(t, "counter", "i=0; while :; do i=$((i+1)); echo $i;"+counterPause+"; done")
	w.echo = first.Sh(t, "echo", `while read x; do echo "heard $x"; done`, func(c *cri.ContainerConfig) { c.Stdin = true })
	w.screen = first.Sh(t, "screen", `while read x; do echo "heard $x"; done`, func(c *cri.ContainerConfig) { c.Stdin, c.Tty = true, true })
	server := first.Run(t, harness.ContainerConfig("web", images.Tools, "web", "-listen", ":80"))
	shared := n.RunPod(t, "witness-shared", func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	})
	w.sharing = shared.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_POD}
	})
	w.created = shared.Create(t, harness.ContainerConfig("created", images.Tools, "sleep", "1000"))
	w.pods = []*harness.Pod{first, shared}
	w.all = []*harness.Container{w.counter, w.echo, w.screen, server, w.sharing, w.created}
	for _, c := range w.all {
		w.seen[c.ID] = look(t, c)
	}
	return w
}

// look asks the CRI and the kernel.
func look(t testing.TB, c *harness.Container) facts {
	t.Helper()
	resp, err := c.Pod.Node.Runtime.ContainerStatus(harness.Ctx(t), &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		t.Fatalf("status of %s: %v", c.Config.Metadata.Name, err)
	}
	var info struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
		t.Fatalf("verbose status: %v", err)
	}
	f := facts{
		pid: info.Pid, startedAt: resp.Status.StartedAt, createdAt: resp.Status.CreatedAt, state: resp.Status.State,
		ips: strings.Join(c.Pod.IPs(t), " "),
	}
	alive := false
	if f.began, alive = harness.StartTime(f.pid); !alive {
		t.Errorf("%s: its process %d has ended", c.Config.Metadata.Name, f.pid)
	}
	return f
}

// verify fails if a witness is not what it was, or cannot be used.
func (w *witnesses) verify(t *testing.T, killed who) {
	t.Helper()
	for _, pod := range w.pods {
		if s := pod.Status(t); s.State != cri.PodSandboxState_SANDBOX_READY {
			t.Errorf("pod %s: %s", pod.Config.Metadata.Name, s.State)
		}
	}
	for _, c := range w.all {
		if got := look(t, c); got != w.seen[c.ID] {
			t.Errorf("%s was %+v and is %+v", c.Config.Metadata.Name, w.seen[c.ID], got)
		}
	}
	for _, c := range []*harness.Container{w.counter, w.screen, w.sharing} {
		if got := c.Exec(t, "echo", "alive"); got != "alive" {
			t.Errorf("exec in %s: %q", c.Config.Metadata.Name, got)
		}
	}
	w.attach(t, w.echo)
	w.attach(t, w.screen)
	w.visit(t)
	w.gaps = w.gaps || killed == keeper || killed == both
	w.count(t)
}

// attach talks to a witness that answers.
func (w *witnesses) attach(t *testing.T, c *harness.Container) {
	t.Helper()
	resp, err := w.rig.node.Runtime.Attach(harness.Ctx(t), &cri.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Tty: c.Config.Tty})
	if err != nil {
		t.Errorf("attach: %v", err)
		return
	}
	cfg, err := websocket.NewConfig(strings.Replace(resp.Url, "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Protocol = []string{"v4.channel.k8s.io"}
	ws, err := cfg.DialContext(harness.Ctx(t))
	if err != nil {
		t.Errorf("attach: %v", err)
		return
	}
	defer ws.Close()
	if err := ws.SetDeadline(time.Now().Add(harness.Patience(20 * time.Second))); err != nil {
		t.Fatal(err)
	}
	word := strconv.FormatInt(time.Now().UnixNano(), 36)
	if err := websocket.Message.Send(ws, append([]byte{0}, word+"\n"...)); err != nil {
		t.Errorf("attach: %v", err)
		return
	}
	var got string
	for !strings.Contains(strings.ReplaceAll(got, "\r", ""), "heard "+word+"\n") {
		var m []byte
		if err := websocket.Message.Receive(ws, &m); err != nil {
			t.Errorf("attach: after %q: %v", got, err)
			return
		}
		if len(m) > 0 && m[0] == 1 {
			got += string(m[1:])
		}
	}
}

// visit goes to the web server by the host port.
func (w *witnesses) visit(t *testing.T) {
	t.Helper()
	client := http.Client{Timeout: harness.Patience(10 * time.Second), Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", witnessPort))
	if err != nil {
		t.Errorf("host port: %v", err)
		return
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("host port: %s, %v", resp.Status, err)
	}
}

// count fails if the log does not go on, or if a line is torn, doubled or out of order. Only the loss of a keeper may cost
// lines.
func (w *witnesses) count(t *testing.T) {
	t.Helper()
	var texts []string
	harness.Eventually(t, 20*time.Second, "the log to go on", func() error {
		lines, err := harness.ReadLog(w.counter.LogPath())
		texts = harness.Texts(lines, "stdout")
		if err == nil && len(texts) <= w.written {
			err = fmt.Errorf("%d lines, as before", len(texts))
		}
		return err
	})
	last := 0
	for i, text := range texts {
		n, err := strconv.Atoi(text)
		if err != nil || n <= last || !w.gaps && n != last+1 {
			t.Fatalf("line %d of the log is %q, after %d: %q", i+1, text, last, texts[max(0, i-3):min(len(texts), i+3)])
		}
		last = n
	}
	w.written = len(texts)
}

// wantStarted starts the witness that was only created: it can be, after all that was killed since.
func (w *witnesses) wantStarted(t *testing.T) {
	t.Helper()
	w.created.Start(t)
	if got := w.created.Exec(t, "echo", "alive"); got != "alive" {
		t.Errorf("exec in what was created before all kills: %q", got)
	}
	w.all = slices.DeleteFunc(w.all, func(c *harness.Container) bool { return c == w.created })
}
