package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// commands are the first words of calls.
func commands(calls []string) []string {
	var words []string
	for _, c := range calls {
		words = append(words, strings.Fields(c)[0])
	}
	return words
}

// wantRecords checks which attachments are on record.
func wantRecords(t *testing.T, c *CNI, want ...string) {
	t.Helper()
	got, err := c.records.all()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("on record: %v, want %v", got, want)
	}
}

func TestCNIAttachAndDetach(t *testing.T) {
	f := newFakeNetwork(t)
	f.write("10-a.conflist", nil)
	c := f.open()
	req := Request{
		SandboxID: "s1", Name: "web", Namespace: "prod", UID: "u-1", NetNS: "/proc/self/ns/net",
		PortMappings: []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "TCP", HostIP: "127.0.0.1"}, {ContainerPort: 81}},
		Annotations:  map[string]string{ingressAnnotation: "1M"},
		DNS:          DNS{Servers: []string{"10.0.0.53"}}, CgroupParent: "/pods/a", Aliases: []string{"www"},
	}
	if err := c.UpdatePodCIDR("10.1.0.0/24,fd00::/64"); err != nil {
		t.Fatal(err)
	}
	res, err := c.Attach(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if want := []netip.Addr{netip.MustParseAddr("fd00::5"), netip.MustParseAddr("10.1.0.5")}; !reflect.DeepEqual(res.IPs, want) {
		t.Errorf("addresses %v, want %v: the pod's, in the order given", res.IPs, want)
	}
	if len(res.Interfaces) != 2 || len(res.Raw) == 0 {
		t.Errorf("result %+v", res)
	}
	want := "ADD id=s1 netns=/proc/self/ns/net if=eth0 args=IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;" +
		"K8S_POD_INFRA_CONTAINER_ID=s1;K8S_POD_UID=u-1 conf=" +
		`{"aliases":["www"],"bandwidth":{"ingressRate":1000000,"ingressBurst":2147483647},"cgroupPath":"/pods/a",` +
		`"dns":{"servers":["10.0.0.53"]},"io.kubernetes.cri.pod-annotations":{"kubernetes.io/ingress-bandwidth":"1M"},` +
		`"ipRanges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64"}]],` +
		`"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}]}`
	if calls := f.calls(); len(calls) != 1 || calls[0] != want {
		t.Errorf("called:\n%s\nwant:\n%s", strings.Join(calls, "\n"), want)
	}
	if _, err := c.Attach(t.Context(), req); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a second Attach: %v, want ErrAlreadyExists", err)
	}
	if err := c.Check(t.Context(), req); err != nil {
		t.Error(err)
	}

	// DEL is for the network of the ADD, also when another one is configured by now and the daemon has been restarted.
	f.write("00-b.conflist", map[string]string{"DEL": "fail"})
	c = f.open()
	wantRecords(t, c, "s1")
	for range 2 {
		if err := c.Detach(t.Context(), Request{SandboxID: "s1"}); err != nil {
			t.Fatal(err)
		}
	}
	if calls := commands(f.calls()); !slices.Equal(calls, []string{"CHECK", "DEL"}) {
		t.Errorf("called: %v, want CHECK and one DEL", calls)
	}
	wantRecords(t, c)
}

func TestCNIDetachWithoutNamespace(t *testing.T) {
	f := newFakeNetwork(t)
	f.write("10-a.conflist", nil)
	c := f.open()
	ns := filepath.Join(f.dir, "ns")
	if err := os.Symlink("/proc/self/ns/net", ns); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Attach(t.Context(), Request{SandboxID: "s1", NetNS: ns}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(ns); err != nil {
		t.Fatal(err)
	}
	if err := c.Detach(t.Context(), Request{SandboxID: "s1", NetNS: ns}); err != nil {
		t.Fatal(err)
	}
	if calls := f.calls(); len(calls) != 2 || !strings.Contains(calls[1], "DEL id=s1 netns= ") {
		t.Errorf("called:\n%s\nwant a DEL without namespace", strings.Join(calls, "\n"))
	}
}

// A DEL that fails is repeated, and not without end.
func TestCNIDetachAgain(t *testing.T) {
	for do, dels := range map[string]int{"fail once": 2, "fail": detachTries} {
		t.Run(do, func(t *testing.T) {
			f := newFakeNetwork(t)
			f.write("10-a.conflist", map[string]string{"DEL": do})
			c := f.open()
			req := Request{SandboxID: "s1", NetNS: "/proc/self/ns/net"}
			if _, err := c.Attach(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			f.calls()
			if err := c.Detach(t.Context(), req); (err != nil) != (do == "fail") {
				t.Errorf("the error is %v", err)
			}
			if calls := commands(f.calls()); !slices.Equal(calls, slices.Repeat([]string{"DEL"}, dels)) {
				t.Errorf("called: %v, want %d DEL", calls, dels)
			}
		})
	}
}

func TestCNIFailures(t *testing.T) {
	cases := []struct {
		name  string
		do    map[string]string
		limit time.Duration // 0: none; the plugin has to come as far as its hanging on any machine
		words []string      // in the error
		left  bool          // a record stays
	}{
		{"fails", map[string]string{"ADD": "fail"}, 0, []string{"no more addresses", "last words", fakeName}, false},
		{"prints rubbish", map[string]string{"ADD": "rubbish"}, 0, []string{"net-10-a"}, false},
		{"prints without end", map[string]string{"ADD": "flood"}, 0, []string{"output exceeds"}, false},
		{"hangs", map[string]string{"ADD": "hang"}, 3 * time.Second, []string{"killed", fakeName}, false},
		{"hangs in a child", map[string]string{"ADD": "orphan"}, 3 * time.Second, []string{"killed"}, false},
		{"DEL fails too", map[string]string{"ADD": "fail", "DEL": "fail"}, 0, []string{"ADD", "DEL"}, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFakeNetwork(t)
			f.write("10-a.conflist", c.do)
			cni := f.open()
			ctx := t.Context()
			if c.limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.limit)
				defer cancel()
			}
			_, err := cni.Attach(ctx, Request{SandboxID: "s1", NetNS: "/proc/self/ns/net"})
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range c.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q says nothing of %q", err, w)
				}
			}
			if c.limit > 0 && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %q is no DeadlineExceeded", err)
			}
			if calls := commands(f.calls()); !slices.Equal(calls, []string{"ADD", "DEL"}) {
				t.Errorf("called: %v, want ADD and DEL", calls)
			}
			if c.left {
				wantRecords(t, cni, "s1")
			} else {
				wantRecords(t, cni)
			}
		})
	}
}

func TestCNIRestoreDetachesTheDead(t *testing.T) {
	f := newFakeNetwork(t)
	f.write("10-a.conflist", nil)
	c := f.open()
	var live Request
	for _, id := range []string{"dead1", "dead2", "live"} {
		live = Request{SandboxID: id, NetNS: "/proc/self/ns/net"}
		if _, err := c.Attach(t.Context(), live); err != nil {
			t.Fatal(err)
		}
	}
	f.calls()
	c = f.open()
	if err := c.Restore(t.Context(), []Request{live}); err != nil {
		t.Fatal(err)
	}
	if calls := commands(f.calls()); !slices.Equal(calls, []string{"DEL", "DEL"}) {
		t.Errorf("called: %v, want DEL twice and no GC", calls)
	}
	wantRecords(t, c, "live")

	c.cfg.OwnNetworks = true
	if err := c.Restore(t.Context(), []Request{live}); err != nil {
		t.Fatal(err)
	}
	if calls := commands(f.calls()); !slices.Equal(calls, []string{"GC"}) {
		t.Errorf("called: %v, want GC of the networks that are ours alone", calls)
	}
}

// A daemon that is killed over ADD leaves its plugins at work. The next one undoes what they do when they have done it.
func TestCNIDetachAfterTheOrphans(t *testing.T) {
	f := newFakeNetwork(t)
	f.write("10-test.conflist", map[string]string{"ADD": "slow"})
	before, after := f.open(), f.open()
	req := Request{SandboxID: "s1", Name: "p", Namespace: "n", NetNS: "/proc/self/ns/net"}
	attached, detached := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := before.Attach(t.Context(), req)
		attached <- err
	}()
	for called := false; !called; time.Sleep(time.Millisecond) {
		_, err := os.Stat(f.log)
		called = err == nil
	}
	go func() { detached <- after.Detach(t.Context(), req) }()
	select {
	case err := <-detached:
		t.Errorf("detached while ADD runs: %v", err)
		detached <- err
	case <-time.After(time.Second):
	}
	if err := os.WriteFile(f.log+"-go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-attached, <-detached); err != nil {
		t.Fatal(err)
	}
	calls := f.calls()
	if got := commands(calls); !slices.Equal(got, []string{"ADD", "ended", "DEL"}) {
		t.Errorf("the plugin was called: %v", got)
	}
	if record := filepath.Join(f.dir, "cache", "attachments", "s1.json"); calls[1] != "ended "+record {
		t.Errorf("the plugin has not inherited %s: %q", record, calls[1])
	}
}

func TestCNIDamagedRecord(t *testing.T) {
	f := newFakeNetwork(t)
	f.write("10-a.conflist", nil)
	c := f.open()
	if err := os.WriteFile(filepath.Join(c.records.dir, "s1.json"), []byte(`{"req`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Detach(t.Context(), Request{SandboxID: "s1", NetNS: "/proc/self/ns/net"}); err != nil {
		t.Fatal(err)
	}
	if calls := commands(f.calls()); !slices.Equal(calls, []string{"DEL"}) {
		t.Errorf("called: %v, want a DEL with what the caller knows", calls)
	}
}

func TestCNIStatus(t *testing.T) {
	f := newFakeNetwork(t)
	c := f.open()
	want := func(when, words string) {
		t.Helper()
		err := c.Status()
		if words == "" && err != nil {
			t.Errorf("%s: %v, want ready", when, err)
		}
		if words != "" && (err == nil || !strings.Contains(err.Error(), words) || !errors.Is(err, errdefs.ErrUnavailable)) {
			t.Errorf("%s: %v, want ErrUnavailable about %q", when, err, words)
		}
	}
	want("no folder", "no CNI configuration")
	f.writeText("10-a.conflist", `{"name": "half`)
	want("a file half written", "10-a.conflist")
	f.write("10-a.conflist", nil)
	want("a good file", "")
	f.writeText("20-b.conflist", `broken, but not the first`)
	c.reload()
	want("a broken file behind it", "")
	f.write("10-a.conflist", map[string]string{"STATUS": "fail"})
	c.reload()
	want("the plugin is not ready", "no more addresses")
	f.writeText("10-a.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"absent"}]}`)
	c.reload()
	want("a plugin that is not installed", `"absent"`)
	f.writeText("00-single.conf", `{"cniVersion":"0.4.0","name":"n","type":"berth-fake"}`)
	c.reload()
	want("a file with one plugin", "")
}

func TestCNIWatchesItsFolder(t *testing.T) {
	f := newFakeNetwork(t)
	changed := make(chan struct{}, 100)
	w, err := watchConf(f.confDir, func() { changed <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	// until waits for the change after which the folder holds what it should.
	until := func(when string, n int) {
		t.Helper()
		timeout := time.After(10 * time.Second)
		for {
			select {
			case <-changed:
				files, _ := os.ReadDir(f.confDir)
				if len(files) == n && len(changed) == 0 {
					return
				}
			case <-timeout:
				t.Fatalf("%s was not noticed", when)
			}
		}
	}
	f.write("10-a.conflist", nil)
	until("a folder made, with its parents", 1)
	f.write("20-b.conflist", nil)
	until("a second file", 2)
	if err := os.RemoveAll(filepath.Join(f.dir, "etc")); err != nil {
		t.Fatal(err)
	}
	until("a folder removed, with its parents", 0)
	f.write("10-a.conflist", nil)
	until("a folder made again", 1)
	f.write("20-b.conflist", nil)
	until("a file in it", 2)
}

func TestUpdatePodCIDRWritesTheTemplate(t *testing.T) {
	f := newFakeNetwork(t)
	template := filepath.Join(f.dir, "template")
	text := `{"cniVersion":"1.1.0","name":"t","plugins":[{"type":"berth-fake","log":"` + f.log + `","first":"{{.PodCIDR}}",` +
		`"ranges":[{{range $i, $r := .PodCIDRRanges}}{{if $i}},{{end}}"{{$r}}"{{end}}],"routes":[{{range $i, $r := .Routes}}{{if $i}},{{end}}"{{$r}}"{{end}}]}]}`
	if err := os.WriteFile(template, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := NewCNI(CNIConfig{ConfDir: f.confDir, BinDirs: []string{f.bin}, CacheDir: filepath.Join(f.dir, "cache"), ConfTemplate: template})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.UpdatePodCIDR("10.1.0.0/24, fd00::/64"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(f.confDir, templateConf))
	if err != nil {
		t.Fatal(err)
	}
	want := `"first":"10.1.0.0/24","ranges":["10.1.0.0/24","fd00::/64"],"routes":["0.0.0.0/0","::/0"]`
	if !strings.Contains(string(got), want) {
		t.Errorf("wrote %s, want %s in it", got, want)
	}
	if err := c.Status(); err != nil {
		t.Error(err)
	}
	if err := c.UpdatePodCIDR("10.2.0.0/24"); err != nil {
		t.Fatal(err)
	}
	if got, _ = os.ReadFile(filepath.Join(f.confDir, templateConf)); !strings.Contains(string(got), "10.2.0.0/24") {
		t.Error("a later range was not written")
	}

	// A network add-on's configuration stays the only one.
	if err := os.Remove(filepath.Join(f.confDir, templateConf)); err != nil {
		t.Fatal(err)
	}
	f.write("99-addon.conflist", nil)
	if err := c.UpdatePodCIDR("10.3.0.0/24"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(f.confDir, templateConf)); err == nil {
		t.Error("the template was written beside another network's configuration")
	}
	for _, bad := range []string{"", "10.1.0.0", "10.1.0.0/24,x"} {
		if err := c.UpdatePodCIDR(bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v, want ErrInvalidArgument", bad, err)
		}
	}
}
