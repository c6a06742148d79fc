package server

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/stream"
	"github.com/berth-node/berth/kubelet"
	"github.com/berth-node/berth/kubelet/event"
	"github.com/berth-node/berth/kubelet/feed"
	"github.com/berth-node/berth/kubelet/volume"
	"github.com/berth-node/berth/runtime"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A node is a kubelet with the pods of the test.
type node struct {
	pods     *feed.Feed[*v1.Pod]
	maps     *feed.Feed[*v1.ConfigMap]
	secrets  *feed.Feed[*v1.Secret]
	claims   *feed.Feed[*v1.PersistentVolumeClaim]
	volumes  *feed.Feed[*v1.PersistentVolume]
	events   *event.Store
	deleted  []string
	restarts []string
	dir      string
	exited   atomic.Bool // the containers are, and run else
	measured int         // how often volumes were
}

func (n *node) Pods() *feed.Feed[*v1.Pod] { return n.pods }

func (n *node) DeletePod(_ context.Context, namespace, name string, o kubelet.DeleteOptions) (*v1.Pod, error) {
	p, ok := n.pods.Get(namespace, name)
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	grace := int64(-1)
	if o.Grace != nil {
		grace = *o.Grace
	}
	n.deleted = append(n.deleted, fmt.Sprintf("%s/%s in %d", namespace, name, grace))
	return p, nil
}

func (n *node) Restart(_ context.Context, namespace, name, container string, _ *int64) error {
	n.restarts = append(n.restarts, namespace+"/"+name+"/"+container)
	return nil
}

func (n *node) ContainerID(_, pod, container string, previous bool) (string, error) {
	if previous {
		return "", fmt.Errorf("previous terminated container %q in pod %q not found: %w", container, pod, errdefs.ErrFailedPrecondition)
	}
	return "id-" + pod, nil
}

func (n *node) SandboxID(_, pod string) (string, error) { return "sandbox-" + pod, nil }

func (n *node) ConfigMaps() *feed.Feed[*v1.ConfigMap]         { return n.maps }
func (n *node) Secrets() *feed.Feed[*v1.Secret]               { return n.secrets }
func (n *node) Claims() *feed.Feed[*v1.PersistentVolumeClaim] { return n.claims }
func (n *node) Volumes() *feed.Feed[*v1.PersistentVolume]     { return n.volumes }

func (n *node) Apply(_ context.Context, r ApplyRequest) (ApplyResult, error) {
	return ApplyResult{Applied: []Applied{{"Pod", "default", r.Documents[0].File, "created"}}}, nil
}

func (n *node) Delete(_ context.Context, kind, namespace, name string) error {
	n.deleted = append(n.deleted, kind+" "+namespace+"/"+name)
	return nil
}

func (n *node) put(namespace, name string, change func(*v1.Pod)) {
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: types.UID("uid-" + name), CreationTimestamp: metav1.NewTime(start.Add(-5 * time.Minute)),
			Labels: map[string]string{"app": name},
		},
		Spec: v1.PodSpec{Containers: []v1.Container{{Name: "main"}}, NodeName: "here"},
		Status: v1.PodStatus{
			Phase: v1.PodRunning, PodIP: "10.0.0.1",
			ContainerStatuses: []v1.ContainerStatus{{Name: "main", Ready: true, State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.NewTime(start)}}}},
		},
	}
	if change != nil {
		change(p)
	}
	n.pods.Put(p)
}

func newNode(t *testing.T) *node {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	now := func() time.Time { return start }
	return &node{
		pods: feed.New[*v1.Pod](100, 10), maps: feed.New[*v1.ConfigMap](100, 10), secrets: feed.New[*v1.Secret](100, 10),
		claims: feed.New[*v1.PersistentVolumeClaim](100, 10), volumes: feed.New[*v1.PersistentVolume](100, 10), dir: t.TempDir(),
		events: event.Open(event.Config{Node: "here", Log: log, Now: now}),
	}
}

func (n *node) server() *Server {
	log := slog.New(slog.DiscardHandler)
	s := New(Config{
		NodeName: "here", Version: "1", Kubelet: n, Objects: n, Events: n.events, Dir: n.dir,
		Container: func(_ context.Context, id string) (runtime.Container, error) {
			state := runtime.Running
			if n.exited.Load() {
				state = runtime.Exited
			}
			return runtime.Container{ID: id, State: state, LogPath: filepath.Join(n.dir, "log")}, nil
		},
		Sessions: stream.NewSessions(stream.Config{}, stream.Backend{
			Exec: func(ctx context.Context, id string, cmd []string, s stream.Streams) (int32, error) {
				fmt.Fprintln(s.Stdout, id, cmd)
				_, err := io.Copy(s.Stdout, s.Stdin)
				return 3, err
			},
		}),
		Stats: func(context.Context) ([]*cri.PodSandboxStats, error) {
			number := func(n uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: n} }
			cpu := &cri.CpuUsage{Timestamp: start.UnixNano(), UsageCoreNanoSeconds: number(5e9), UsageNanoCores: number(250e6)}
			memory := &cri.MemoryUsage{Timestamp: start.UnixNano(), WorkingSetBytes: number(64 << 20)}
			return []*cri.PodSandboxStats{{
				Attributes: &cri.PodSandboxAttributes{Metadata: &cri.PodSandboxMetadata{Uid: "uid-web"}},
				Linux: &cri.LinuxPodSandboxStats{Cpu: cpu, Memory: memory, Containers: []*cri.ContainerStats{{
					Attributes: &cri.ContainerAttributes{Metadata: &cri.ContainerMetadata{Name: "main"}}, Cpu: cpu, Memory: memory,
					WritableLayer: &cri.FilesystemUsage{Timestamp: start.UnixNano(), UsedBytes: number(300), InodesUsed: number(3)},
				}}},
			}, {Attributes: &cri.PodSandboxAttributes{Metadata: &cri.PodSandboxMetadata{Uid: "of another owner"}}}}, nil
		},
		Metrics: func(context.Context) ([]*cri.PodSandboxMetrics, error) {
			return []*cri.PodSandboxMetrics{{Metrics: []*cri.Metric{{
				Name: "container_cpu_usage_seconds_total", MetricType: cri.MetricType_COUNTER, LabelValues: []string{"web"}, Value: &cri.UInt64Value{Value: 7},
			}}}}, nil
		},
		Descriptors: []*cri.MetricDescriptor{{Name: "container_cpu_usage_seconds_total", Help: "time", LabelKeys: []string{"pod"}}},
		Daemon:      prometheus.NewRegistry(), Probes: prometheus.NewRegistry(),
		LogDir: func(*v1.Pod, string) string { return filepath.Join(n.dir, "logs") },
		Files:  func(*v1.Pod) (volume.Usage, error) { return volume.Usage{Bytes: 50000, Inodes: 5}, nil },
		Volumes: func(p *v1.Pod) ([]volume.Usage, error) {
			n.measured++
			var out []volume.Usage
			for i, v := range p.Spec.Volumes {
				out = append(out, volume.Usage{
					Name: v.Name, Bytes: 1000 << i, Inodes: 1 << i, On: volume.FileSystem{Capacity: 9000, Available: 8000, Inodes: 700, InodesFree: 600},
				})
			}
			return out, nil
		},
		Node: func() *v1.Node {
			return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "here", CreationTimestamp: metav1.NewTime(start.Add(-time.Hour))}}
		},
		Now: now, Log: log,
	})
	s.between = 0 // the clock stands still
	return s
}

func now() time.Time { return start }

// door serves a handler on a unix socket, and returns a client of it.
func door(t *testing.T, h http.Handler) *http.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDoor(l, h, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve() }()
	t.Cleanup(func() {
		_ = d.Close()
		if err := <-served; err != nil {
			t.Error("Serve:", err)
		}
	})
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
}

func request(t *testing.T, c *http.Client, method, path, accept, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://node"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

const tables = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"

func TestReads(t *testing.T) {
	n := newNode(t)
	n.put("default", "web", nil)
	n.put("other", "db", func(p *v1.Pod) { p.Status.Phase = v1.PodPending })
	n.maps.Put(&v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "m"}, Data: map[string]string{"a": "b"}})
	n.events.Eventf(event.About(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}), "Normal", "Started", "it started")
	c := door(t, n.server().API())
	for _, tt := range []struct {
		path, accept string
		code         int
		want         []string
		not          string
	}{
		{path: "/version", code: 200, want: []string{`"gitVersion":"v1.36.3+berth-1"`}},
		{path: "/healthz", code: 200, want: []string{"ok"}},
		{path: "/api", code: 200, want: []string{`"kind":"APIVersions"`, `"versions":["v1"]`}},
		{path: "/apis", code: 200, want: []string{`"name":"metrics.k8s.io"`}},
		{path: "/api/v1", code: 200, want: []string{`"name":"pods/exec"`, `"shortNames":["po"]`, `"verbs":["delete","get","list","watch"]`}},
		{path: "/api/v1/pods", code: 200, want: []string{`"kind":"PodList"`, `"resourceVersion":"102"`, `"name":"web"`, `"name":"db"`}},
		{path: "/api/v1/namespaces/other/pods", code: 200, want: []string{`"name":"db"`}, not: `"name":"web"`},
		{path: "/api/v1/pods?labelSelector=app%3Dweb", code: 200, want: []string{`"name":"web"`}, not: `"name":"db"`},
		{path: "/api/v1/pods?fieldSelector=status.phase%21%3DPending", code: 200, want: []string{`"name":"web"`}, not: `"name":"db"`},
		{path: "/api/v1/pods?fieldSelector=metadata.name%3Ddb", code: 200, want: []string{`"name":"db"`}, not: `"name":"web"`},
		{path: "/api/v1/pods?fieldSelector=spec.colour%3Dred", code: 400, want: []string{"field label not supported: spec.colour"}},
		{path: "/api/v1/pods?labelSelector=%3D%3D", code: 400, want: []string{"unable to parse"}},
		{path: "/api/v1/namespaces/default/pods/web", code: 200, want: []string{`"kind":"Pod"`, `"uid":"uid-web"`}},
		{path: "/api/v1/namespaces/default/pods/none", code: 404, want: []string{`pods \"none\" not found`, `"reason":"NotFound"`, `"kind":"Status"`}},
		{path: "/api/v1/namespaces/default/deployments", code: 404, want: []string{"the server could not find the requested resource"}},
		{path: "/apis/apps/v1/deployments", code: 404, want: []string{`"kind":"Status"`}},
		{path: "/api/v1/namespaces", code: 200, want: []string{`"name":"default"`, `"name":"other"`}},
		{path: "/api/v1/nodes/here", code: 200, want: []string{`"kind":"Node"`}},
		{path: "/api/v1/namespaces/default/configmaps/m", code: 200, want: []string{`"data":{"a":"b"}`}},
		{path: "/api/v1/events?fieldSelector=involvedObject.name%3Dweb,involvedObject.kind%3DPod", code: 200, want: []string{"it started"}},
		{path: "/api/v1/namespaces/default/pods", accept: tables, code: 200, want: []string{`"kind":"Table"`, `"cells":["web","1/1","Running","0","5m","10.0.0.1","here","<none>","<none>"]`, `"kind":"PartialObjectMetadata"`}},
		{path: "/api/v1/namespaces/default/pods?includeObject=Object", accept: tables, code: 200, want: []string{`"object":{"kind":"Pod"`}},
		{path: "/api/v1/pods", accept: "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", code: 200, want: []string{`"kind":"PartialObjectMetadataList"`}, not: "phase"},
		{path: "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/web", code: 200, want: []string{`"cpu":"250m"`, `"memory":"64Mi"`}},
		{path: "/apis/metrics.k8s.io/v1beta1/pods", code: 200, want: []string{`"kind":"PodMetricsList"`, `"name":"web"`}, not: "db"},
		{path: "/apis/metrics.k8s.io/v1beta1/nodes", code: 200, want: []string{`"kind":"NodeMetricsList"`}},
	} {
		code, body := request(t, c, http.MethodGet, tt.path, tt.accept, "")
		if code != tt.code {
			t.Errorf("%s: %d, want %d: %s", tt.path, code, tt.code, body)
		}
		for _, want := range tt.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s: no %s in %s", tt.path, want, body)
			}
		}
		if tt.not != "" && strings.Contains(body, tt.not) {
			t.Errorf("%s: %s in %s", tt.path, tt.not, body)
		}
	}
}

func TestVerbs(t *testing.T) {
	n := newNode(t)
	n.put("default", "web", nil)
	n.maps.Put(&v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "m"}})
	c := door(t, n.server().API())
	for _, tt := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{"DELETE", "/api/v1/namespaces/default/pods/web", `{"gracePeriodSeconds":5}`, 200, `"uid":"uid-web"`},
		{"DELETE", "/api/v1/namespaces/default/pods/web?gracePeriodSeconds=7", "", 200, `"kind":"Pod"`},
		{"DELETE", "/api/v1/namespaces/default/pods/web", `{"preconditions":{"uid":"another"}}`, 409, "UID in precondition: another"},
		{"DELETE", "/api/v1/namespaces/default/pods/web", `{"gracePeriodSeconds":"soon"}`, 400, "DeleteOptions"},
		{"DELETE", "/api/v1/namespaces/default/pods/web", `{"dryRun":["All"]}`, 200, `"uid":"uid-web"`},
		{"DELETE", "/api/v1/namespaces/default/pods/none", "", 404, `pods \"none\" not found`},
		{"DELETE", "/api/v1/namespaces/default/configmaps/m", "", 200, `"status":"Success"`},
		{"DELETE", "/api/v1/namespaces/default/events/m", "", 404, "not found"},
		{"POST", "/api/v1/namespaces/default/pods", `{}`, 404, "could not find"},
		{"PATCH", "/api/v1/namespaces/default/pods/web", `{}`, 405, "an object is changed where it is declared"},
		{"PUT", "/api/v1/namespaces/default/configmaps/m", `{}`, 405, "edit its file, or change it with berth apply"},
		{"PATCH", "/api/v1/namespaces/default/pods/web/resize", `{}`, 405, "an object is changed where it is declared"},
		{"POST", "/berth/v1/apply", `{"documents":[{"file":"f.yaml","data":"e30="}]}`, 200, `"action":"created"`},
		{"POST", "/berth/v1/apply", `nonsense`, 400, "invalid character"},
		{"POST", "/berth/v1/namespaces/default/pods/web/restart?container=main", "", 200, "Success"},
		{"POST", "/berth/v1/namespaces/default/pods/web/restart?container=none", "", 400, "container none is not valid for pod web"},
		{"GET", "/api/v1/namespaces/default/pods/web/exec?command=x", "", 400, "at least 1 of stdin, stdout, stderr"},
		{"GET", "/api/v1/namespaces/default/pods/web/exec?stdout=1", "", 400, "at least one command"},
		{"GET", "/api/v1/namespaces/default/pods/web/exec?stdout=perhaps&command=x", "", 400, "neither true nor false"},
		{"GET", "/api/v1/namespaces/default/pods/web/log?previous=true", "", 400, `previous terminated container \"main\" in pod \"web\" not found`},
		{"GET", "/api/v1/namespaces/default/pods/web/log?tailLines=-1", "", 422, "must be greater than or equal to 0"},
		{"GET", "/api/v1/namespaces/default/pods/web/log?container=c", "", 400, "container c is not valid for pod web"},
	} {
		code, body := request(t, c, tt.method, tt.path, "", tt.body)
		if code != tt.code || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s: %d %s, want %d %s", tt.method, tt.path, code, body, tt.code, tt.want)
		}
	}
	if got := strings.Join(n.deleted, ", "); got != "default/web in 5, default/web in 7, ConfigMap default/m" {
		t.Errorf("deleted %s", got)
	}
	if got := strings.Join(n.restarts, ", "); got != "default/web/main" {
		t.Errorf("restarted %s", got)
	}
}

func TestWatch(t *testing.T) {
	n := newNode(t)
	n.put("default", "web", nil)
	n.put("default", "done", func(p *v1.Pod) { p.Status.Phase = v1.PodSucceeded })
	c := door(t, n.server().API())
	follow := func(query, accept string) func() string {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://node/api/v1/namespaces/default/pods?watch=true&"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", accept)
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		lines := bufio.NewReader(resp.Body)
		return func() string {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatalf("%q, %v", line, err)
			}
			var e struct {
				Type   string
				Object json.RawMessage
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			var p v1.Pod
			_ = json.Unmarshal(e.Object, &p)
			return e.Type + " " + p.Name + p.Annotations[metav1.InitialEventsAnnotationKey] + strings.TrimSpace(string(tableCells(e.Object)))
		}
	}
	all := follow("", "")
	since := follow("resourceVersion=101", "")
	running := follow("resourceVersion=102&fieldSelector=status.phase%3DRunning", "")
	listed := follow("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", "")
	rows := follow("resourceVersion=102", tables)
	for _, want := range []string{"ADDED done", "ADDED web"} {
		if got := all(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got := listed(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := listed(); got != "BOOKMARK true" {
		t.Errorf("got %s", got)
	}
	if got := since(); got != "ADDED done" {
		t.Errorf("got %s", got)
	}
	// One that does not run any more is gone for who watches those that run, and one that runs again is new.
	n.put("default", "web", func(p *v1.Pod) { p.Status.Phase = v1.PodFailed })
	n.put("default", "web", nil)
	n.put("other", "else", nil)
	n.pods.Delete("default", "web")
	for _, want := range []string{"DELETED web", "ADDED web", "DELETED web"} {
		if got := running(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	for _, want := range []string{`MODIFIED [9] web 1/1 Failed`, `MODIFIED [0] web 1/1 Running`, `DELETED [0] web 1/1 Running`} {
		if got := rows(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if code, body := request(t, c, http.MethodGet, "/api/v1/pods?watch=1&resourceVersion=7", "", ""); code != 410 || !strings.Contains(body, `"reason":"Expired"`) {
		t.Errorf("a version of an earlier daemon: %d %s", code, body)
	}
}

// tableCells writes down how many columns a table says, and the first cells.
func tableCells(object []byte) []byte {
	var table metav1.Table
	if json.Unmarshal(object, &table) != nil || table.Kind != "Table" {
		return nil
	}
	c := table.Rows[0].Cells
	return fmt.Appendf(nil, "[%d] %v %v %v", len(table.ColumnDefinitions), c[0], c[1], c[2])
}

func TestLogs(t *testing.T) {
	n := newNode(t)
	n.put("default", "web", nil)
	log := "2026-01-02T03:04:05.5Z stdout F one\n2026-01-02T03:04:06Z stderr P tw\n2026-01-02T03:04:06Z stderr F o\n"
	if err := os.WriteFile(filepath.Join(n.dir, "log"), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	c := door(t, n.server().API())
	for query, want := range map[string]string{
		"":                                "one\ntwo\n",
		"timestamps=true":                 "2026-01-02T03:04:05.500000000Z one\n2026-01-02T03:04:06.000000000Z two\n",
		"tailLines=1":                     "two\n",
		"limitBytes=5":                    "one\nt",
		"stream=Stderr":                   "two\n",
		"sinceTime=2026-01-02T03:04:06Z":  "two\n",
		"tailLines=0":                     "",
		"container=main&limitBytes=10000": "one\ntwo\n",
	} {
		if code, got := request(t, c, http.MethodGet, "/api/v1/namespaces/default/pods/web/log?"+query, "", ""); code != 200 || got != want {
			t.Errorf("%s: %d %q, want %q", query, code, got, want)
		}
	}
	// A log that is followed ends with its container.
	resp, err := c.Get("http://node/api/v1/namespaces/default/pods/web/log?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 8)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "one\ntwo\n" {
		t.Fatalf("%q, %v", first, err)
	}
	n.exited.Store(true)
	n.put("default", "web", nil)
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
		t.Errorf("%q, %v", rest, err)
	}
}
