package runtime

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/procfs"
)

func TestStateFollowsFromFacts(t *testing.T) {
	now := time.Now()
	for want, f := range map[State]containerFacts{
		Created: {MadeAt: now, Process: procfs.Process{Pid: 5}},
		Running: {StartedAt: now},
		Exited:  {StartedAt: now, FinishedAt: now},
	} {
		if got := f.state(); got != want {
			t.Errorf("%+v is %s, want %s", f, got, want)
		}
	}
	if got := (containerFacts{FinishedAt: now}).state(); got != Exited {
		t.Errorf("a container that could not be started is %s", got)
	}
}

// saveContainer writes a record as the daemon does.
func saveContainer(t *testing.T, l layout, id string) *container {
	t.Helper()
	if err := os.MkdirAll(l.containers(), 0o700); err != nil {
		t.Fatal(err)
	}
	c := newContainer(l.container(id))
	c.config = &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "app", Attempt: 2},
		// An environment may hold any bytes.
		Envs: []*cri.KeyValue{{Key: "K", Value: []byte{0xff, 0, '\n'}}},
	}
	config, err := marshalProto(c.config)
	if err != nil {
		t.Fatal(err)
	}
	c.record = containerRecord{Version: recordVersion, ID: id, SandboxID: "s", CreatedAt: time.Now(), Config: config}
	if err := writeRecord(c.dir, c.record); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestContainerRecordRoundTrip(t *testing.T) {
	l := layout{root: t.TempDir()}
	c := saveContainer(t, l, "c1")
	at := time.Unix(1700000000, 123456789).UTC()
	if err := c.update(func(f *containerFacts) { f.StartedAt, f.Process = at, procfs.Process{Pid: 7, StartTime: 8} }); err != nil {
		t.Fatal(err)
	}
	got, _, err := loadContainer(l, "c1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.config, c.config) {
		t.Errorf("config: %v, want %v", got.config, c.config)
	}
	if !reflect.DeepEqual(got.facts, c.facts) || !got.record.CreatedAt.Equal(c.record.CreatedAt) {
		t.Errorf("facts %+v, want %+v", got.facts, c.facts)
	}
	select {
	case <-got.exited:
		t.Error("a running container was loaded as exited")
	default:
	}
}

func TestSandboxRecordRoundTrip(t *testing.T) {
	l := layout{root: t.TempDir()}
	if err := os.MkdirAll(l.sandboxes(), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p"}, Annotations: map[string]string{"a": "b"}}
	config, err := marshalProto(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sb := &sandbox{twin: twin{dir: l.sandbox("s1")}, record: sandboxRecord{Version: recordVersion, ID: "s1", Config: config}}
	if err := writeRecord(sb.dir, sb.record); err != nil {
		t.Fatal(err)
	}
	ips := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}
	if err := sb.update(func(f *sandboxFacts) { f.ReadyAt, f.IPs = time.Now(), ips }); err != nil {
		t.Fatal(err)
	}
	got, _, err := loadSandbox(l, "s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !got.ready() || !reflect.DeepEqual(got.facts.IPs, ips) || !proto.Equal(got.config, cfg) {
		t.Errorf("loaded %+v %v", got.facts, got.config)
	}
	if err := got.update(func(f *sandboxFacts) { f.StoppedAt = time.Now() }); err != nil || got.ready() {
		t.Errorf("a stopped sandbox is ready (%v)", err)
	}
}

// Killed before the first facts are on record, a daemon leaves namespaces and an address that only the record names.
func TestSandboxWithoutFactsKnowsWhatToTakeDown(t *testing.T) {
	l := layout{root: t.TempDir()}
	if err := os.MkdirAll(l.sandboxes(), 0o700); err != nil {
		t.Fatal(err)
	}
	a := anchors{NetNS: "/run/netns/x", CgroupParent: "/kubepods/x", MadeParent: true, Name: "p", Namespace: "n", UID: "u"}
	record := sandboxRecord{Version: recordVersion, ID: "s1", Anchors: a, Config: json.RawMessage(`{"metadata":{"name":"p"}}`)}
	if err := writeRecord(l.sandbox("s1"), record); err != nil {
		t.Fatal(err)
	}
	sb, _, err := loadSandbox(l, "s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := networkRequest(sb); sb.factsNow().Anchors != a || got.NetNS != a.NetNS || got.Name != "p" {
		t.Errorf("loaded %+v, which detaches %+v", sb.factsNow().Anchors, got)
	}
}

func TestDamagedRecordsAreToldApart(t *testing.T) {
	newer, err := json.Marshal(containerRecord{Version: recordVersion + 1, ID: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := json.Marshal(containerRecord{Version: recordVersion, ID: "c2"})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		file, content string
		want          error
	}{
		"truncated":      {recordFile, `{"version":1,"id":"c1"`, errDamaged},
		"empty":          {recordFile, "", errDamaged},
		"garbage":        {recordFile, "\x00\x01", errDamaged},
		"newer":          {recordFile, string(newer), errDamaged},
		"of another":     {recordFile, string(other), errDamaged},
		"no metadata":    {recordFile, `{"version":1,"id":"c1","config":{}}`, errDamaged},
		"config":         {recordFile, `{"version":1,"id":"c1","config":{"metadata":7}}`, errDamaged},
		"damaged facts":  {factsFile, `{"startedAt":`, errDamaged},
		"facts of a fan": {factsFile, `{"exitCode":"none"}`, errDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			l := layout{root: t.TempDir()}
			saveContainer(t, l, "c1")
			if err := os.WriteFile(filepath.Join(l.container("c1"), tc.file), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := loadContainer(l, "c1", nil); !errors.Is(err, tc.want) {
				t.Errorf("load: %v", err)
			}
		})
	}
	if _, _, err := loadContainer(layout{root: t.TempDir()}, "c1", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load of nothing: %v", err)
	}
}

func TestLogPathStaysInItsFolder(t *testing.T) {
	pod := &cri.PodSandboxConfig{LogDirectory: "/var/log/pods/p"}
	for path, want := range map[string]string{
		"": "", "app/0.log": "/var/log/pods/p/app/0.log", "../other/0.log": "error", "/etc/passwd": "error", "a/../../b": "error",
	} {
		got, err := logPathOf(pod, &cri.ContainerConfig{LogPath: path})
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("log path %q: %q, want %q", path, got, want)
		}
	}
}
