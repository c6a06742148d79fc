//go:build integration

package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
	"github.com/berth-node/berth/integration/registry"
)

const password = "open sesame"

// A shop is a node with a registry of its own, which by one of its names asks for a login.
type shop struct {
	*node
	registry *registry.Registry
	closed   string // host and port: a password is not sent to a mirror
	image    string // at closed
}

// openShop opens one. config is asked when it is known where the registry is.
func openShop(t *testing.T, tmpfs []harness.Tmpfs, config func(closed string) string) *shop {
	t.Helper()
	hosts := t.TempDir()
	r, s, err := harness.ServeImages(hosts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	shop := &shop{registry: r, closed: s.Addr(), image: s.Addr() + "/tools:1"}
	if err := r.Tag(images.Tools, shop.image); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteHosts(hosts, shop.closed); err != nil {
		t.Fatal(err)
	}
	r.Require(shop.closed, registry.Login{User: "me", Password: password, Bearer: true})
	text := ""
	if config != nil {
		text = config(shop.closed)
	}
	shop.node = startServed(t, hosts, tmpfs, quick, text)
	return shop
}

// closedPod is a pod with an image of the closed registry.
func (s *shop) closedPod(name string, more ...string) string {
	return strings.Replace(podText(name, sleeper, more...), images.Tools, s.image, 1)
}

// login is a secret with a password for the closed registry.
func (s *shop) login(name, password string) string {
	return strings.Replace(secret(name, ".dockerconfigjson", fmt.Sprintf(`{"auths":{%q:{"username":"me","password":%q}}}`, s.closed, password)),
		"kind: Secret\n", "kind: Secret\ntype: kubernetes.io/dockerconfigjson\n", 1)
}

func pullSecrets(names string) string { return "  imagePullSecrets: [" + names + "]\n" }

// awaitWaiting waits until a pod's container waits for this reason, and returns in which words.
func (n *node) awaitWaiting(pod, reason string) string {
	n.t.Helper()
	p := n.await(pod, "waiting: "+reason, func(p *v1.Pod) bool {
		w := status(p, "main").State.Waiting
		return w != nil && w.Reason == reason
	})
	return status(p, "main").State.Waiting.Message
}

// Who has no password gets no image, not even one that is on the node since another pod had it; and back-off, reasons and events say so.
func TestImagePullSecrets(t *testing.T) {
	n := openShop(t, nil, nil)
	n.write("secrets.yaml", n.login("wrong", "guess")+"---\n"+n.login("right", password))
	n.write("bare.yaml", n.closedPod("bare"))
	n.write("wrong.yaml", n.closedPod("wrong", pullSecrets("{name: wrong}, {name: missing}")))
	for _, pod := range []string{"bare", "wrong"} {
		message := n.awaitWaiting(pod, "ImagePullBackOff")
		if !strings.HasPrefix(message, `Back-off pulling image "`+n.image+`": ErrImagePull: `) {
			t.Errorf("%s waits: %s", pod, message)
		}
		n.berth().lines(t, "events", "-w", "--for", "pod/"+pod)(`Error: ImagePullBackOff`) // which is the last of a round
		for _, want := range []string{
			`Normal +Pulling .*Pulling image "` + n.image + `"`, `Warning +Failed .*Failed to pull image "` + n.image + `": `,
			`Warning +Failed .*Error: ErrImagePull`, `Normal +BackOff .*Back-off pulling image "` + n.image + `"`, `Warning +Failed .*Error: ImagePullBackOff`,
		} {
			wants(t, pod, n.eventsOf(pod), want)
		}
	}
	wants(t, "a secret that is not there", n.eventsOf("wrong"),
		`Warning +FailedToRetrieveImagePullSecret .*Unable to retrieve some image pull secrets \(missing\); attempting to pull the image may not succeed\.`)

	n.write("right.yaml", n.closedPod("right", pullSecrets("{name: wrong}, {name: right}")))
	n.awaitReady("right")
	n.write("stranger.yaml", n.closedPod("stranger", "    imagePullPolicy: Never\n"))
	n.awaitWaiting("stranger", "ErrImageNeverPull")
	n.Restart(t)
	n.write("friend.yaml", n.closedPod("friend", "    imagePullPolicy: Never\n", pullSecrets("{name: right}")))
	n.awaitReady("friend")
	if message := n.awaitWaiting("bare", "ImagePullBackOff"); strings.Contains(message, password) {
		t.Errorf("the message has the password: %s", message)
	}
	n.write("secrets.yaml", n.login("wrong", password)+"---\n"+n.login("right", password))
	n.awaitReady("wrong")
}

// eventsOf is what there is to be told of a pod.
func (n *node) eventsOf(pod string) string {
	n.t.Helper()
	return n.berth().ok(n.t.(*testing.T), "events", "--for", "pod/"+pod)
}

// A program knows the password, is asked for each registry once, and what it is asked for the node may have, and so any pod.
func TestCredentialProviderPlugin(t *testing.T) {
	dir := t.TempDir()
	plugin := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "plug"), []byte("#!/bin/sh\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	plugin("echo no luck today >&2; exit 3\n")
	n := openShop(t, nil, func(closed string) string {
		config := filepath.Join(dir, "config.yaml")
		if err := os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: plug
  matchImages: [%q]
  defaultCacheDuration: 1h
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: [me]
  env: [{name: PASSWORD, value: %q}]
`, closed, password), 0o600); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("  imageCredentialProviderConfig: %s\n  imageCredentialProviderBinDir: %s\n", config, dir)
	})
	n.write("p.yaml", n.closedPod("p"))
	if message := n.awaitWaiting("p", "ImagePullBackOff"); !strings.Contains(message, "credential provider plugin plug: exit status 3: no luck today") {
		t.Errorf("it waits: %s", message)
	}
	plugin(`cat >> ` + dir + `/asked
echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","auth":{"` + n.closed + `":{"username":"'$1'","password":"'"$PASSWORD"'"}}}'
`)
	n.awaitReady("p")
	n.write("again.yaml", n.closedPod("again", "    imagePullPolicy: Always\n"))
	n.write("open.yaml", podText("open", sleeper)) // of a registry that is none of its
	n.awaitReady("again")
	n.awaitReady("open")
	asked, err := os.ReadFile(filepath.Join(dir, "asked"))
	if err != nil || strings.Count(string(asked), "CredentialProviderRequest") != 1 || !strings.Contains(string(asked), `"image":"`+n.closed+`/tools"`) {
		t.Errorf("it was asked %s, %v", asked, err)
	}
	n.write("never.yaml", n.closedPod("never", "    imagePullPolicy: Never\n"))
	n.awaitReady("never")
}

// What a pull policy says is seen by how often the registry is asked.
func TestPullPolicies(t *testing.T) {
	n := openShop(t, nil, nil)
	asked := func() int { return n.registry.Count("", "/tools/manifests/") }
	n.write("first.yaml", podText("first", sleeper)) // IfNotPresent, as the tag is not latest
	n.awaitReady("first")
	wants(t, "a pull", n.eventsOf("first"), `Normal +Pulling .*Pulling image "`+images.Tools+`"`,
		`Normal +Pulled .*Successfully pulled image "`+images.Tools+`" in [0-9.]+m?s \([0-9.]+m?s including waiting\)\. Image size: [0-9]+ bytes\.`)
	before := asked()
	if before == 0 {
		t.Fatal("nobody asked for the image")
	}
	for _, policy := range []string{"IfNotPresent", "Never"} {
		name := strings.ToLower(policy)
		n.write(name+".yaml", podText(name, sleeper, "    imagePullPolicy: "+policy+"\n"))
		n.awaitReady(name)
		wants(t, name, n.eventsOf(name), `Normal +Pulled .*Container image "`+images.Tools+`" already present on machine and can be accessed by the pod`)
	}
	if now := asked(); now != before {
		t.Errorf("for an image that is there the registry was asked %d times", now-before)
	}
	n.write("always.yaml", podText("always", sleeper, "    imagePullPolicy: Always\n"))
	n.awaitReady("always")
	if now := asked(); now == before {
		t.Error("with the policy Always nobody asked the registry")
	}
	// Only who must ask does without when nobody answers.
	n.registry.Require(images.Registry, registry.Login{User: "nobody", Password: "none"})
	n.write("refused.yaml", podText("refused", sleeper, "    imagePullPolicy: Always\n"))
	n.awaitWaiting("refused", "ImagePullBackOff")
	n.write("content.yaml", podText("content", sleeper))
	n.awaitReady("content")
	n.write("missing.yaml", strings.Replace(podText("missing", sleeper, "    imagePullPolicy: Never\n"), images.Tools, images.Tools+"-nothing", 1))
	if message := n.awaitWaiting("missing", "ErrImageNeverPull"); message != `Container image "`+images.Tools+`-nothing" is not present with pull policy of Never` {
		t.Errorf("it waits: %s", message)
	}
	wants(t, "missing", n.eventsOf("missing"), `Warning +ErrImageNeverPull .*Container image "`+images.Tools+`-nothing" is not present with pull policy of Never`)
}

// When the file system of the images fills, those that nobody uses go, and no pod; those that containers run from stay, and those that are
// mounted as volumes.
func TestImagesThatNobodyUsesMakeRoom(t *testing.T) {
	n := openShop(t, []harness.Tmpfs{{Path: "root/images", Options: "size=96m"}}, func(string) string {
		return "  imageMinimumGCAge: 0s\n  evictionPressureTransitionPeriod: 1s\n" +
			"  evictionHard: {imagefs.available: 24Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.inodesFree: 0%, memory.available: 0%}\n"
	})
	n.write("p.yaml", podText("p", sleeper, "    volumeMounts: [{name: image, mountPath: /image}]\n  volumes: [{name: image, image: {reference: "+images.Volume+"}}]\n"))
	before := n.awaitReady("p")
	n.fetch(images.Layered)
	// Without the image, of 12 MiB, there is room enough.
	n.fill(filepath.Join(n.RootDir, "images"), 24<<20-6<<20)
	harness.Eventually(t, 60*time.Second, "the image that nobody uses is gone", func() error {
		if n.has(images.Layered) {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	for _, name := range []string{images.Tools, images.Volume} {
		if !n.has(name) {
			t.Errorf("%s is gone, which is in use", name)
		}
	}
	if p := n.awaitReady("p"); p.UID != before.UID {
		t.Error("the pod is another")
	}
}

// fill fills a file system until so much is left.
func (n *node) fill(dir string, left int) {
	n.t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, int(fs.Bavail)*int(fs.Bsize)-left), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) fetch(name string) {
	n.t.Helper()
	ctx, cancel := deadline()
	defer cancel()
	if _, err := n.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}}); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) has(name string) bool {
	n.t.Helper()
	ctx, cancel := deadline()
	defer cancel()
	resp, err := n.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.Image != nil
}
