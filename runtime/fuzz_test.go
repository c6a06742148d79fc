package runtime

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Records and facts of any content: read, or damaged; nothing between.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"x","sandboxID":"s","config":{"metadata":{"name":"a"}}}`), []byte(`{"exitCode":5}`))
	f.Add([]byte(`{"version":99,"id":"x"}`), []byte(`{}`))
	f.Add([]byte(`{"id":"x","config":{"metadata":null}}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, record, facts []byte) {
		l := layout{root: t.TempDir(), run: t.TempDir()}
		for _, dir := range []string{l.sandbox("x"), l.container("x")} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(filepath.Join(dir, recordFile), record, 0o600), os.WriteFile(filepath.Join(dir, factsFile), facts, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		sb, _, err := loadSandbox(l, "x", nil)
		if err == nil && (sb.record.ID != "x" || sb.config.GetMetadata() == nil) || err != nil && !errors.Is(err, errDamaged) {
			t.Errorf("sandbox: %+v, %v", sb, err)
		}
		c, _, err := loadContainer(l, "x", nil)
		if err == nil && (c.record.ID != "x" || c.config.GetMetadata() == nil) || err != nil && !errors.Is(err, errDamaged) {
			t.Errorf("container: %+v, %v", c, err)
		}
		if errors.Is(err, fs.ErrNotExist) {
			t.Error("a damaged record is one that is not there")
		}
	})
}

func FuzzNetDev(f *testing.F) {
	f.Add("Inter-|   Receive |  Transmit\n face |bytes\n eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n lo:1\n")
	f.Add("a:b: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n:\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, i := range parseNetDev(text) {
			if i.Name == "lo" || strings.Contains(i.Name, ":") {
				t.Errorf("%q has an interface %q", text, i.Name)
			}
		}
	})
}

// A log stays in its pod's folder.
func FuzzLogPath(f *testing.F) {
	f.Add("/var/log/pods/x", "app/0.log")
	f.Add("/logs", "../x")
	f.Add("/", "a/../../b")
	f.Fuzz(func(t *testing.T, dir, name string) {
		got, err := logPathOf(&cri.PodSandboxConfig{LogDirectory: dir}, &cri.ContainerConfig{LogPath: name})
		if err != nil || got == "" {
			return
		}
		if rel, err := filepath.Rel(dir, got); err != nil || !filepath.IsLocal(rel) {
			t.Errorf("%q in %q is %q", name, dir, got)
		}
	})
}

// What a pod's resolv.conf says is what it was made from, in lines of three kinds.
func FuzzResolvConf(f *testing.F) {
	f.Add("10.0.0.1", "berth.test", "ndots:5")
	f.Fuzz(func(t *testing.T, server, search, option string) {
		if strings.ContainsAny(server+search+option, "\n") {
			return // the door lets no line break in
		}
		text, err := resolvConf(&cri.DNSConfig{Servers: []string{server}, Searches: []string{search}, Options: []string{option}})
		if err != nil || bytes.Count(text, []byte("\n")) != 3 {
			t.Errorf("%q, %v", text, err)
		}
	})
}

// The folder of an image that a volume is made of is in the image.
func FuzzImageSubPath(f *testing.F) {
	root := f.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(root, "in"), 0o755), os.Symlink("../../..", filepath.Join(root, "in", "up")), os.Symlink("/", filepath.Join(root, "abs"))); err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"in", "in/up/etc", "abs", "../x", "in/../..", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sub string) {
		got, err := imageSubPath(root, sub)
		if err != nil {
			return
		}
		real, err := filepath.EvalSymlinks(got)
		if err != nil || real != root && !strings.HasPrefix(real, root+"/") {
			t.Errorf("%q is %q, %v", sub, real, err)
		}
	})
}
