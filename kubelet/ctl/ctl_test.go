package ctl

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestPlaces(t *testing.T) {
	for arg, want := range map[string]place{
		"file":         {path: "file"},
		"./a:b":        {path: "./a:b"},
		"/a:b":         {path: "/a:b"},
		"web:/x":       {"default", "web", "/x"},
		"prod/web:x/y": {"prod", "web", "x/y"},
	} {
		if got, err := placeOf(arg, "default"); err != nil || got != want {
			t.Errorf("%s: %+v, %v", arg, got, err)
		}
	}
	for _, arg := range []string{":/x", "web:", "ns/:/x"} {
		if got, err := placeOf(arg, "default"); err == nil {
			t.Errorf("%s: %+v", arg, got)
		}
	}
}

// What a container sends gets nowhere but to where the user wants it.
func TestUnpackStaysInside(t *testing.T) {
	dir := t.TempDir()
	inside, outside := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	for _, d := range []string{inside, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(inside, "leads-out")); err != nil {
		t.Fatal(err)
	}
	try := func(entries ...*tar.Header) (string, error) {
		var data, said bytes.Buffer
		w := tar.NewWriter(&data)
		for _, h := range entries {
			h.Mode, h.Size = 0o644, 0
			if h.Typeflag == tar.TypeReg {
				h.Size = 4
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				_, _ = w.Write([]byte("data"))
			}
		}
		_ = w.Close()
		err := unpack(&data, "src", filepath.Join(inside, "dst"), &said)
		return said.String(), err
	}
	said, err := try(
		&tar.Header{Name: "src/", Typeflag: tar.TypeDir},
		&tar.Header{Name: "src/a/b", Typeflag: tar.TypeReg},
		&tar.Header{Name: "src/../../../out/evil", Typeflag: tar.TypeReg},
		&tar.Header{Name: "srcother/evil", Typeflag: tar.TypeReg},
		&tar.Header{Name: "src/link", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink},
		&tar.Header{Name: "src/hard", Linkname: "src/a/b", Typeflag: tar.TypeLink},
	)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(inside, "dst", "a", "b")); err != nil || string(got) != "data" {
		t.Errorf("%q, %v", got, err)
	}
	for _, want := range []string{"outside target destination", "skipping symlink"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in %q", want, said)
		}
	}
	// A link that was there already is not followed out either.
	if err := os.Symlink(outside, filepath.Join(inside, "dst", "down")); err != nil {
		t.Fatal(err)
	}
	if _, err := try(&tar.Header{Name: "src/down/evil", Typeflag: tar.TypeReg}); err == nil {
		t.Error("written through a link that leads out")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside: %v, %v", left, err)
	}
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	if err := archive(&data, dir, "name"); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&data); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		names = append(names, h.Name+h.Linkname)
	}
	if got := strings.Join(names, " "); got != "name name/f name/lf" {
		t.Errorf("got %s", got)
	}
}

func TestConditions(t *testing.T) {
	pod := map[string]any{"status": map[string]any{
		"phase":      "Running",
		"conditions": []any{map[string]any{"type": "Ready", "status": "True"}, map[string]any{"type": "Initialized", "status": "False"}},
	}}
	for text, want := range map[string]bool{
		"condition=Ready": true, "condition=ready": true, "condition=Ready=false": false, "condition=Initialized": false,
		"condition=Initialized=False": true, "condition=None": false,
		"jsonpath={.status.phase}=Running": true, "jsonpath={.status.phase}=Failed": false, "jsonpath={.status.phase}='Running'": true, "jsonpath={.status.phase}": true,
		"jsonpath={.status.podIP}": false, "jsonpath=.status.phase=Running": true,
	} {
		is, err := condition(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := is(pod); err != nil || got != want {
			t.Errorf("%s: %t, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "ready", "jsonpath={.a"} {
		if _, err := condition(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestNumberedPorts(t *testing.T) {
	pod := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Ports: []v1.ContainerPort{{Name: "http", ContainerPort: 80}, {Name: "dns", ContainerPort: 53, Protocol: v1.ProtocolUDP}}}}}}
	for port, want := range map[string]string{"80": "80", "8080:80": "8080:80", ":80": ":80", "http": "80", "8080:http": "8080:80", ":http": ":80"} {
		if got, err := numberedPort(pod, port); err != nil || got != want {
			t.Errorf("%s: %s, %v", port, got, err)
		}
	}
	for _, port := range []string{"https", "dns"} {
		if got, err := numberedPort(pod, port); err == nil {
			t.Errorf("%s: %s", port, got)
		}
	}
}

func TestDocuments(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.yaml", "b.json", "c.txt", "below/d.yml"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := func(paths []string, recursive bool) string {
		docs, err := documents(paths, recursive, strings.NewReader("in"))
		if err != nil {
			return err.Error()
		}
		var all []string
		for _, d := range docs {
			all = append(all, string(d.Data))
		}
		return strings.Join(all, " ")
	}
	for _, tt := range []struct {
		paths     []string
		recursive bool
		want      string
	}{
		{[]string{dir}, false, "a.yaml b.json"},
		{[]string{dir}, true, "a.yaml b.json below/d.yml"},
		{[]string{filepath.Join(dir, "c.txt"), "-"}, false, "c.txt in"},
		{[]string{dir + "/none"}, false, `the path "` + dir + `/none" does not exist`},
		{nil, false, "must specify one of -f"},
	} {
		if got := names(tt.paths, tt.recursive); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.paths, got, tt.want)
		}
	}
}

func TestMessages(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "x"), `Error from server (NotFound): pods "x" not found`},
		{errors.New("no"), "error: no"},
	} {
		if got := Message(tt.err); got != tt.want {
			t.Errorf("%s, want %s", got, tt.want)
		}
	}
}

// Only what has waited as long as it was told to has timed out.
func TestAnInterruptedWaitHasNotTimedOut(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "none.sock"))
	pod := target{kind: metav1.APIResource{Name: "pods", Namespaced: true}, name: "p"}
	wait := func(ctx context.Context) error {
		return c.await(ctx, pod, Scope{Namespace: "default"}, func(map[string]any, bool) (bool, error) { return false, nil })
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 0)
	defer cancel()
	if err := wait(ctx); err == nil || err.Error() != "timed out waiting for the condition on pods/p" {
		t.Errorf("too late: %v", err)
	}
}

func TestPodName(t *testing.T) {
	for arg, want := range map[string]string{"web": "web", "pod/web": "web", "pods/web": "web", "po/web": "web"} {
		if got, err := PodName(arg); err != nil || got != want {
			t.Errorf("%s: %s, %v", arg, got, err)
		}
	}
	for _, arg := range []string{"pod/", "node/x", "/x"} {
		if got, err := PodName(arg); err == nil {
			t.Errorf("%s: %s", arg, got)
		}
	}
}

func TestSortBy(t *testing.T) {
	objects := func(values ...any) []map[string]any {
		var all []map[string]any
		for i, v := range values {
			o := map[string]any{"name": string(rune('a' + i))}
			if v != nil {
				o["spec"] = map[string]any{"v": v}
			}
			all = append(all, o)
		}
		return all
	}
	for name, tt := range map[string]struct {
		values []any
		want   string // or the error
	}{
		"numbers":        {[]any{int64(10), int64(9), 9.5}, "bca"},
		"texts":          {[]any{"x", "10", "y", "9"}, "dbac"},
		"quantities":     {[]any{"1Gi", "512Mi", "1G"}, "bca"},
		"none first":     {[]any{"x", nil, "a", nil}, "bdca"},
		"the same":       {[]any{"x", "x", "x"}, "abc"},
		"nobody has it":  {[]any{nil, nil}, `couldn't find any field with path "{.spec.v}" in the list of objects`},
		"a mapping":      {[]any{map[string]any{}, map[string]any{}}, "unsortable type: map[string]interface {}"},
		"of other sorts": {[]any{"x", int64(1)}, "unsortable"},
	} {
		all := objects(tt.values...)
		got := ""
		if err := sortBy(all, ".spec.v", func(o map[string]any) (map[string]any, error) { return o, nil }); err != nil {
			got = err.Error()
		} else {
			for _, o := range all {
				got += o["name"].(string)
			}
		}
		if !strings.HasPrefix(got, tt.want) || tt.want == "" {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
}

// A path is followed as kubectl does it.
func TestJSONPath(t *testing.T) {
	pod := &v1.Pod{}
	pod.Name, pod.Spec.Containers = "web", []v1.Container{{Name: "a"}, {Name: "b"}}
	for output, want := range map[string]string{
		"jsonpath={.metadata.name}":                          "web",
		"jsonpath={.metadata.name}={.spec.none.at.all};":     "web=;",
		"jsonpath={.metadata.labels['app']}":                 "",
		"jsonpath={range .spec.containers[*]}{.image}x{end}": "xx",
		"jsonpath-as-json={.spec.containers[*].name}":        `["a","b"]`,
		"jsonpath-as-json={.metadata.labels}":                "[]",
	} {
		p, err := newPrinter(GetOptions{Output: output}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := p.to.PrintObj(pod, &got); err != nil || strings.Join(strings.Fields(got.String()), "") != want {
			t.Errorf("%s: %q, %v, want %q", output, got.String(), err, want)
		}
	}
}
