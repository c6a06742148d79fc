//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// madeImage pushes an image to the tests' registry: that of the tools, with its configuration as change leaves it, and with
// one layer more.
func madeImage(t *testing.T, name string, change func(config map[string]any), files ...tar.Header) string {
	t.Helper()
	return remadeImage(t, name, func(image map[string]any) any {
		change(image["config"].(map[string]any))
		return image
	}, files...)
}

// remadeImage is madeImage for what is beside the configuration of containers: change returns what becomes JSON, or is.
func remadeImage(t *testing.T, name string, change func(image map[string]any) any, files ...tar.Header) string {
	t.Helper()
	blob := func(d digest.Digest) map[string]any {
		data, err := os.ReadFile(filepath.Join(harness.Layout(), "blobs", "sha256", d.Encoded()))
		var v map[string]any
		if err == nil {
			err = json.Unmarshal(data, &v)
		}
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	manifest := blob(world.registry.Digest(images.ToolsZstd))
	config := blob(digest.Digest(manifest["config"].(map[string]any)["digest"].(string)))
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, f := range files {
		if err := w.WriteHeader(&f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	rootfs := config["rootfs"].(map[string]any)
	rootfs["diff_ids"] = append(rootfs["diff_ids"].([]any), pushBlob(t, name, archive.Bytes()).String())
	changed := change(config)
	manifest["layers"] = append(manifest["layers"].([]any), ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(archive.Bytes()), Size: int64(archive.Len()),
	})
	text, isText := changed.([]byte)
	if !isText {
		var err error
		if text, err = json.Marshal(changed); err != nil {
			t.Fatal(err)
		}
	}
	manifest["config"] = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: pushBlob(t, name, text), Size: int64(len(text))}
	text, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	push(t, http.MethodPut, "/v2/"+name+"/manifests/1", ocispec.MediaTypeImageManifest, text)
	return images.Registry + "/" + name + ":1"
}

func pushBlob(t *testing.T, name string, data []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(data)
	push(t, http.MethodPost, "/v2/"+name+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", data)
	return d
}

func push(t *testing.T, method, path, mediaType string, data []byte) {
	t.Helper()
	r := httptest.NewRequest(method, "http://"+images.Registry+path, bytes.NewReader(data))
	r.Header.Set("Content-Type", mediaType)
	answer := httptest.NewRecorder()
	world.registry.ServeHTTP(answer, r)
	if answer.Code != http.StatusCreated {
		t.Fatalf("%s %s: %d %s", method, path, answer.Code, answer.Body)
	}
}

func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

// attempt creates and starts a container that may well be refused, and waits for its end. It returns its output.
func attempt(t *testing.T, pod *harness.Pod, config *cri.ContainerConfig) (output string, err error) {
	t.Helper()
	n := pod.Node
	n.NeedImage(t, config.Image.Image)
	made, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
	if err != nil {
		return "", err
	}
	c := &harness.Container{Pod: pod, ID: made.ContainerId, Config: config}
	if _, err = n.Runtime.StartContainer(harness.Ctx(t), &cri.StartContainerRequest{ContainerId: c.ID}); err == nil {
		c.WaitExit(t)
		lines, logErr := harness.ReadLog(c.LogPath())
		output, err = strings.Join(harness.Texts(lines, "stdout"), "\n"), errors.Join(logErr, os.Remove(c.LogPath())) // the next has the same
	}
	_, removeErr := n.Runtime.RemoveContainer(harness.Ctx(t), &cri.RemoveContainerRequest{ContainerId: c.ID})
	return output, errors.Join(err, removeErr)
}

// victim is a folder of the host that no container was given, with a file and a user of its own.
func victim(t *testing.T) (dir string, check func()) {
	t.Helper()
	dir = t.TempDir()
	files := map[string]string{"secret": "of the host", "passwd": "berthtest:x:4242:4242::/:/bin/sh\n", "group": "berthtest:x:4242:\n"}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, func() {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != len(files) {
			t.Errorf("the folder of the host has become %v, %v", entries, err)
		}
		for name, text := range files {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != text {
				t.Errorf("%s of the host has become %q, %v", name, got, err)
			}
		}
	}
}

// CVE-2024-5154, CVE-2022-23648: where an image has links in the place of folders, nothing is made at the place of the host
// that they name, and nothing of it comes into the container: not by files that every container gets, not by the names of
// users, not by the image's volumes.
func TestCVEImageLinks(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "cve-links")
	dir, check := victim(t)
	const show = `cat /etc/secret /vol/secret /vol2/secret /proc/secret /sys/secret 2>/dev/null; find / -xdev -name secret 2>/dev/null; id -u`
	volumes := func(paths ...string) func(map[string]any) {
		return func(c map[string]any) {
			all := map[string]any{}
			for _, p := range paths {
				all[p] = map[string]any{}
			}
			c["Volumes"] = all
		}
	}
	none := func(map[string]any) {}
	for name, c := range map[string]struct {
		change func(map[string]any)
		files  []tar.Header
	}{
		"etc":               {none, []tar.Header{symlink("etc", dir)}},
		"etc-upwards":       {none, []tar.Header{symlink("etc", "../../../../../../../.."+dir)}},
		"passwd":            {none, []tar.Header{symlink("etc/passwd", dir+"/passwd"), symlink("etc/group", dir+"/group")}},
		"mtab":              {none, []tar.Header{symlink("etc/mtab", dir+"/mtab"), symlink("etc/resolv.conf", dir+"/made"), symlink("etc/hostname", dir+"/made")}},
		"volume":            {volumes("/vol"), []tar.Header{symlink("vol", dir)}},
		"volume-upwards":    {volumes("/vol"), []tar.Header{symlink("vol", "../../../../../../../.."+dir)}},
		"volume-below-link": {volumes("/vol2/" + filepath.Base(dir)), []tar.Header{symlink("vol2", filepath.Dir(dir))}},
		"volume-by-name":    {volumes("/../../../../../../.."+dir, "/vol/../../../../.."+dir+"/../"+filepath.Base(dir)), nil},
		"proc":              {none, []tar.Header{symlink("proc", dir)}},
		"sys":               {none, []tar.Header{symlink("sys", dir)}},
		"dev":               {none, []tar.Header{symlink("dev", dir)}},
	} {
		t.Run(name, func(t *testing.T) {
			image := madeImage(t, "links-"+name, c.change, c.files...)
			for _, user := range []string{"", "berthtest"} {
				config := harness.ContainerConfig("app", image, "/bin/sh", "-c", show)
				config.Linux.SecurityContext.RunAsUsername = user
				out, err := attempt(t, pod, config)
				if strings.Contains(out, "host") || strings.Contains(out, "secret") || strings.Contains(out, "4242") {
					t.Errorf("user %q: the container shows %q", user, out)
				}
				if user == "" && err != nil && name != "proc" && name != "sys" && name != "dev" {
					t.Errorf("an image that does no harm is refused: %v", err)
				}
				if user != "" && err == nil {
					t.Errorf("there is no user %s in the image, and the container ran: %q", user, out)
				}
				check()
			}
		})
	}
}

// CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: with a volume of its own in the place of /dev, a container decides what
// /dev/null and /dev/console are. What masks paths is the null device all the same, and no terminal is mounted over what a
// link names; nothing is mounted into /proc, where a runtime's own writes could be led elsewhere.
func TestCVEMaskedPaths(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "cve-masks")
	volume := func(to string) []*cri.Mount {
		dir := t.TempDir()
		for _, name := range []string{"null", "console", "ptmx"} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		return []*cri.Mount{{HostPath: dir, ContainerPath: "/dev"}}
	}
	text, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	pattern := strings.TrimSpace(string(text))
	for _, tty := range []bool{false, true} {
		for _, to := range []string{"/proc/sys/kernel/core_pattern", "/proc/self/attr/exec", "/etc/passwd", "/no/such/file"} {
			config := harness.ContainerConfig("app", images.Tools, "sh", "-c",
				`echo "masked: $(cat /proc/keys) $(cat /etc/group)"; grep -E ' (/proc/sys/kernel/core_pattern|/etc/passwd) ' /proc/self/mountinfo; grep -c root /etc/passwd`)
			config.Tty = tty
			config.Mounts = volume(to)
			config.Linux.SecurityContext.MaskedPaths = []string{"/proc/keys", "/etc/group"}
			config.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/sys"}
			out, err := attempt(t, pod, config)
			if err != nil {
				continue // refused, as it may be
			}
			out = strings.ReplaceAll(out, "\r", "")
			if tail, ok := strings.CutPrefix(out, "masked:  \n"); !ok || strings.Contains(tail, " - devpts ") || strings.Contains(out, pattern) {
				t.Errorf("links to %s, terminal %t: the container shows %q", to, tty, out)
			}
		}
	}
	for _, path := range []string{"/proc/self/attr", "/proc/self/attr/exec", "/proc/thread-self/attr", "/proc/sys", "/proc/self/fd", "/proc/../proc/self"} {
		config := harness.ContainerConfig("app", images.Tools, "true")
		config.Mounts = []*cri.Mount{{HostPath: t.TempDir(), ContainerPath: path}}
		if _, err := attempt(t, pod, config); err == nil {
			t.Errorf("a mount at %s was made", path)
		}
	}
	if after, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err != nil || string(after) != string(text) {
		t.Errorf("core_pattern is %q, %v", after, err)
	}
}

// CVE-2021-30465: a container of the pod swaps a folder of a shared volume for a link while another starts that has a mount
// below it. Whatever comes of the start, the mount's place is not made on the host.
func TestCVEMountTarget(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "cve-target")
	dir, check := victim(t)
	shared := t.TempDir()
	target, link := filepath.Join(shared, "target"), filepath.Join(shared, "link")
	if err := errors.Join(os.Mkdir(target, 0o755), os.Symlink(dir, link)); err != nil {
		t.Fatal(err)
	}
	stop := swapping(target, link)
	defer stop()
	started := 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		config := harness.ContainerConfig("app", images.Tools, "sh", "-c", "find / -xdev -name secret")
		config.Mounts = []*cri.Mount{
			{HostPath: shared, ContainerPath: "/v"},
			{HostPath: t.TempDir(), ContainerPath: "/v/target/made"},
			{HostPath: t.TempDir(), ContainerPath: "/v/target/also/made"},
		}
		out, err := attempt(t, pod, config)
		if err == nil {
			started++
		}
		if out != "" {
			t.Fatalf("the container finds %q", out)
		}
		check()
	}
	t.Logf("%d starts", started)
}

// CVE-2025-52881 (and CVE-2019-19921, CVE-2023-27561): a container of the pod swaps a folder of a shared volume for a link into /proc while
// another starts that has a mount there, so that what the runtime writes to /proc, the LSM's label above all, goes to what the
// mount has in its place: nowhere, or through a link to a file of /proc that the attacker chooses. Whatever comes of the start, no
// mount is inside of /proc but those of every container, the label is in force, and nothing was written elsewhere.
func TestCVEProcWrites(t *testing.T) {
	n := sharedNode(t)
	pod := n.RunPod(t, "cve-proc")
	config := func(mounts ...*cri.Mount) *cri.ContainerConfig {
		c := harness.ContainerConfig("app", images.Tools, "sh", "-c", `echo "label $(cat /proc/self/attr/current 2>/dev/null)"
			echo "domain $(cat /proc/sys/kernel/domainname)"
			while read -r _ _ _ root point _; do case $point in /proc*) echo "$root at $point";; esac; done < /proc/self/mountinfo`)
		c.Mounts = mounts
		c.Linux.SecurityContext.MaskedPaths, c.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/keys", "/proc/acpi"}, []string{"/proc/sys", "/proc/bus"}
		return c
	}
	want, err := attempt(t, pod, config())
	if err != nil || !strings.Contains(want, "/ at /proc") {
		t.Fatalf("a container of nobody's attack: %q, %v", want, err)
	}
	for _, place := range []string{"/proc", "/proc/self/attr", "/proc/thread-self/attr", "/proc/1/task/1/attr", "/proc/sys/kernel"} {
		for name, fake := range map[string]func(path string) error{
			"files": func(path string) error { return os.WriteFile(path, []byte("untouched"), 0o666) },
			"links": func(path string) error { return os.Symlink("/proc/sys/kernel/domainname", path) },
		} {
			t.Run(strings.TrimPrefix(place, "/")+" by "+name, func(t *testing.T) {
				shared, fakes := t.TempDir(), fakeProc(t, fake)
				// Who looks the place up part by part takes so long for it that it has changed when it is looked up again.
				deep := strings.Repeat("d/", 200)
				target, link := filepath.Join(shared, deep, "target"), filepath.Join(shared, "link")
				if err := errors.Join(os.MkdirAll(target, 0o755), os.Symlink(place, link)); err != nil {
					t.Fatal(err)
				}
				stop := swapping(target, link)
				defer stop()
				tries, started := 0, 0
				for end := time.Now().Add(time.Second); time.Now().Before(end); tries++ {
					got, err := attempt(t, pod, config(&cri.Mount{HostPath: shared, ContainerPath: "/v"}, &cri.Mount{HostPath: fakes, ContainerPath: filepath.Join("/v", deep, "target")}))
					if err == nil {
						started++
					}
					if err == nil && got != want {
						t.Fatalf("in the container:\n%s\nwant\n%s", got, want)
					}
					untouched(t, fakes)
				}
				t.Logf("%d of %d started", started, tries)
			})
		}
	}
}

// fakeProc makes a folder that has in it what a runtime writes to, whichever of the places it is mounted at.
func fakeProc(t *testing.T, fake func(path string) error) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, above := range []string{"", "self/attr", "thread-self/attr", "1/attr", "1/task/1/attr", "sys/kernel"} {
		for _, name := range []string{"exec", "current", "fscreate", "keycreate", "apparmor/exec", "apparmor/current", "hostname", "core_pattern"} {
			path := filepath.Join(dir, above, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), fake(path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// untouched fails if a file below the folder has been written to, or is new.
func untouched(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && string(data) != "untouched" {
			err = fmt.Errorf("%s has become %q", path, data)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// swapping exchanges two names again and again until stop is called.
func swapping(a, b string) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Microsecond):
				_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			}
		}
	})
	return sync.OnceFunc(func() { close(done); wg.Wait() })
}

// TestSwappedSources has the source of a mount and the folder of the logs swapped for links while containers are created. A
// link there is followed, as it always is: what comes is one of the two that were there, and nothing is made beside them.
func TestSwappedSources(t *testing.T) {
	n := sharedNode(t)
	place := t.TempDir()
	source, link, other := filepath.Join(place, "source"), filepath.Join(place, "link"), filepath.Join(place, "other")
	if err := errors.Join(os.MkdirAll(filepath.Join(source, "sub"), 0o755), os.MkdirAll(filepath.Join(other, "sub"), 0o755), os.Symlink(other, link)); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{source, other} {
		if err := os.WriteFile(filepath.Join(d, "sub", "whose"), []byte(filepath.Base(d)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	logs, logsLink, otherLogs := filepath.Join(place, "logs"), filepath.Join(place, "logs-link"), filepath.Join(place, "other-logs")
	if err := errors.Join(os.Mkdir(logs, 0o755), os.Mkdir(otherLogs, 0o755), os.Symlink(otherLogs, logsLink)); err != nil {
		t.Fatal(err)
	}
	pod := n.RunPod(t, "cve-source", func(c *cri.PodSandboxConfig) { c.LogDirectory = logs })
	stop, stopLogs := swapping(source, link), swapping(logs, logsLink)
	defer stop()
	defer stopLogs()
	seen := map[string]int{}
	for i, end := 0, time.Now().Add(2*time.Second); time.Now().Before(end); i++ {
		config := harness.ContainerConfig(fmt.Sprintf("app%d", i), images.Tools, "cat", "/v/whose")
		config.Mounts = []*cri.Mount{{HostPath: filepath.Join(source, "sub"), ContainerPath: "/v"}}
		seen[swapped(t, pod, config, logs, otherLogs)]++
	}
	stop()
	stopLogs()
	if seen["source"]+seen["other"] == 0 {
		t.Error("no container ran")
	}
	t.Logf("seen: %v", seen)
	var left []string
	err := filepath.WalkDir(place, func(path string, _ os.DirEntry, err error) error {
		if filepath.Ext(path) != ".log" {
			left = append(left, path)
		}
		return err
	})
	const itself, sources, folders = 1, 2*3 + 1, 3
	if err != nil || len(left) != itself+sources+folders {
		t.Errorf("%q, %v", left, err)
	}
}

// swapped runs a container whose log is in one of two folders, and returns the log; "" where there is none.
func swapped(t *testing.T, pod *harness.Pod, config *cri.ContainerConfig, folders ...string) string {
	t.Helper()
	n := pod.Node
	n.NeedImage(t, config.Image.Image)
	made, err := n.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
	if err != nil {
		return ""
	}
	c := &harness.Container{Pod: pod, ID: made.ContainerId, Config: config}
	c.Start(t)
	c.WaitExit(t)
	if _, err := n.Runtime.RemoveContainer(harness.Ctx(t), &cri.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		t.Error(err)
	}
	for range 1000 { // until both names are looked at between two swaps
		for _, dir := range folders {
			if lines, err := harness.ReadLog(filepath.Join(dir, config.LogPath)); err == nil {
				text := strings.Join(harness.Texts(lines, "stdout"), "\n")
				if text != "source" && text != "other" {
					t.Errorf("the mount has %q", text)
				}
				return text
			}
		}
	}
	return ""
}

// CVE-2019-5736: a container cannot write to the programs that berth starts in it, neither to the init that waits in the PID
// namespace of the pod nor to what starts an exec, be either libcontainer's or package enter's. The privileged one may look at
// them, and its attempts are what the test is about.
func TestCVEOwnPrograms(t *testing.T) {
	const attack = `
take() {
	echo "got $1 $(readlink /proc/self/fd/7)"
	for i in 1 2 3 4 5 6 7 8; do
		dd if=/bin/busybox of=/proc/self/fd/7 bs=1 count=1 conv=notrunc 2>/dev/null && echo WRITTEN
		usleep 20000
	done
}
echo ready
while :; do for p in /proc/[0-9]*; do
	{ case $(readlink /proc/self/fd/7) in /memfd:*) take $p; esac; } 7<$p/exe
done 2>/dev/null; done`
	libcontainer := ownNode(t, func(o *harness.Options) { o.Config = "exec: {libcontainer: true}\ncontainer: {libcontainer: true}\n" })
	for name, test := range map[string]struct {
		*harness.Node
		init string
	}{"enter": {sharedNode(t), "berth-enter"}, "libcontainer": {libcontainer, "berth-launch"}} {
		n := test.Node
		t.Run(name, func(t *testing.T) {
			before := programs(t)
			inPod := func(c *cri.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_POD}
			}
			pod := n.RunPod(t, "cve-exe", func(p *cri.PodSandboxConfig) {
				p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
				p.Linux.SecurityContext.Privileged = true
			})
			privileged := pod.Sh(t, "privileged", attack, inPod, func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
			plain := pod.Sh(t, "plain", attack, inPod)
			waitForText(t, privileged, "stdout", "ready")
			waitForText(t, plain, "stdout", "ready")
			waiting := pod.Create(t, harness.ContainerConfig("waiting", images.Tools, "true"), inPod)
			harness.Eventually(t, 30*time.Second, "the init to be found", func() error {
				return wantIn(strings.Join(harness.Texts(privileged.Log(t), "stdout"), "\n"), test.init)
			})
			for range 15 {
				_ = plain.Exec(t, "true")
				// What this is while the runtime looks it up is the runtime's own program.
				_, _ = plain.ExecSync(harness.Ctx(t), harness.Patience(10*time.Second), "/proc/self/exe", "x")
			}
			waiting.Start(t)
			waiting.WaitExit(t)
			time.Sleep(300 * time.Millisecond) // what was held meanwhile is tried once more
			for _, c := range []*harness.Container{privileged, plain} {
				text := strings.Join(harness.Texts(c.Log(t), "stdout"), "\n")
				if strings.Contains(text, "WRITTEN") {
					t.Errorf("%s has written to a program: %s", c.Config.Metadata.Name, text)
				}
				c.Stop(t, 0)
			}
			if after := programs(t); after != before {
				t.Errorf("the programs have changed: %s, were %s", after, before)
			}
		})
	}
}

// programs is a digest of berth's own.
func programs(t *testing.T) string {
	t.Helper()
	sum := sha256.New()
	for _, name := range []string{"berth", "berth-keeper", "berth-launch"} {
		data, err := os.ReadFile(filepath.Join(harness.Root(), "bin", name))
		if err != nil {
			t.Fatal(err)
		}
		sum.Write(data)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}
