//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
)

// testMajor is one of the numbers that Linux reserves for experiments: no driver has it. So opening such a device is
// refused by the container's device rules (EPERM) or, if they allow it, fails for want of a driver (ENXIO).
const testMajor = 60

// hostDevice makes a device node on the host.
func hostDevice(t *testing.T, path string, minor uint32) string {
	t.Helper()
	err := unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(testMajor, minor)))
	if err == nil {
		err = os.Chmod(path, 0o660) // whatever the umask
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// allowed tries what can be done with a device, and returns the letters of what the rules allow. (Making device nodes is
// allowed to every container, with whatever numbers: it opens no device.)
func allowed(t *testing.T, c *harness.Container, path string) string {
	t.Helper()
	return c.Exec(t, "sh", "-c", fmt.Sprintf(`
		may() { case $2 in *"No such device"*) printf $1 ;; *"not permitted"*) ;; *) echo "$2" ;; esac; }
		may r "$( (: <%[1]s) 2>&1)"
		may w "$( (: >%[1]s) 2>&1)"`, path))
}

func TestDevices(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	one, two := hostDevice(t, filepath.Join(folder, "one"), 1), hostDevice(t, filepath.Join(folder, "two"), 2)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(one, link); err != nil {
		t.Fatal(err)
	}
	pod := sharedNode(t).RunPod(t, "devices")
	with := func(name string, devices ...*cri.Device) *harness.Container {
		return pod.Idle(t, name, func(c *cri.ContainerConfig) { c.Devices = devices })
	}
	for permissions, want := range map[string]string{"r": "r", "w": "w", "rw": "rw", "m": "", "rwm": "rw", "": "rw"} {
		c := with("may-"+permissions, &cri.Device{HostPath: one, ContainerPath: "/dev/one", Permissions: permissions})
		if got := allowed(t, c, "/dev/one"); got != want {
			t.Errorf("with %q: may %q", permissions, got)
		}
	}
	none := with("none")
	none.Exec(t, "mknod", "/tmp/made", "c", fmt.Sprint(testMajor), "1")
	if got := allowed(t, none, "/tmp/made"); got != "" {
		t.Errorf("without any: may %q", got)
	}

	many := with("many",
		&cri.Device{HostPath: folder, ContainerPath: "/dev/all", Permissions: "rw"},
		&cri.Device{HostPath: link, ContainerPath: "/dev/linked", Permissions: "r"},
		&cri.Device{HostPath: two, Permissions: "r"})
	for path, minor := range map[string]string{"/dev/all/one": "1", "/dev/all/two": "2", "/dev/linked": "1", two: "2"} {
		if got := many.Exec(t, "stat", "-c", "%F %t:%T %a", path); got != fmt.Sprintf("character special file %x:%s 660", testMajor, minor) {
			t.Errorf("%s is %s", path, got)
		}
	}
	wantRefused(t, pod, codes.NotFound, "no-such", func(c *cri.ContainerConfig) { c.Devices = []*cri.Device{{HostPath: dir + "/no-such"}} })
	wantRefused(t, pod, codes.InvalidArgument, "permissions", func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: one, Permissions: "rx"}}
	})
	wantRefused(t, pod, codes.InvalidArgument, "not a device", func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/etc/passwd"}}
	})
}

// wantRefused asks for a container that cannot be created; the error has this code and this word.
func wantRefused(t *testing.T, pod *harness.Pod, code codes.Code, word string, change func(*cri.ContainerConfig)) {
	t.Helper()
	config := harness.ContainerConfig("refused", images.Tools, "true")
	change(config)
	_, err := pod.Node.Runtime.CreateContainer(harness.Ctx(t), &cri.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
	if status.Code(err) != code || !strings.Contains(err.Error(), word) {
		t.Errorf("%v, want %s and %q", err, code, word)
	}
	for _, id := range containersListed(t, pod) {
		c := &harness.Container{Pod: pod, ID: id}
		if c.Status(t).GetMetadata().GetName() == "refused" {
			t.Error("it was created")
		}
	}
}

// A device in a pod with a user namespace is that of the host, too.
func TestDeviceInUserNamespace(t *testing.T) {
	n := sharedNode(t)
	needFeature(t, n, "user namespaces", (*cri.RuntimeHandlerFeatures).GetUserNamespaces)
	one := hostDevice(t, filepath.Join(openDir(t), "one"), 1)
	ns := inUserNamespace(1_000_000)
	pod := n.RunPod(t, "devices-userns", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = ns })
	c := pod.Idle(t, "app", func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = ns
		c.Devices = []*cri.Device{{HostPath: one, ContainerPath: "/dev/one", Permissions: "r"}}
	})
	if got := c.Exec(t, "stat", "-c", "%F %t:%T", "/dev/one"); got != fmt.Sprintf("character special file %x:1", testMajor) {
		t.Errorf("it is %s", got)
	}
}

// openDir is a folder that the users of a pod can walk into, unlike the test's own.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-open-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// A cdiSpec describes devices as a vendor's driver does.
type cdiSpec map[string]any

// gadget is a device that brings a device node, a variable and a mount, each with its name.
func gadget(node, file, name string) map[string]any {
	return map[string]any{
		"name": name,
		"containerEdits": map[string]any{
			"deviceNodes": []any{map[string]any{"path": "/dev/" + name, "hostPath": node, "permissions": "rw"}},
			"env":         []any{"GADGET_" + strings.ToUpper(name) + "=" + name},
			"mounts":      []any{map[string]any{"hostPath": file, "containerPath": "/opt/" + name, "options": []any{"ro", "bind"}}},
		},
	}
}

func (s cdiSpec) write(t *testing.T, file string) {
	t.Helper()
	data, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(file, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// hasGadget looks for what a gadget brings.
func hasGadget(t *testing.T, c *harness.Container, name string) bool {
	t.Helper()
	got := c.Exec(t, "sh", "-c", fmt.Sprintf(`stat -c %%t /dev/%[1]s; echo $GADGET_%[2]s; cat /opt/%[1]s; touch /opt/%[1]s; true`, name, strings.ToUpper(name)))
	if got == "" {
		return false
	}
	if want := fmt.Sprintf("%x\n%s\nfile of a gadget", testMajor, name); got != want {
		t.Errorf("%s of %s: %q, want %q", name, c.Config.Metadata.Name, got, want)
	}
	return true
}

// Devices of the container device interface come by the CRI's field, by annotations, by the handler of a RuntimeClass, and
// by an NRI plugin.
func TestCDI(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("file of a gadget\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	node := hostDevice(t, filepath.Join(dir, "node"), 7)
	specs := filepath.Join(dir, "cdi")
	n := ownNode(t, func(o *harness.Options) {
		o.Config = fmt.Sprintf(`
container:
  cdiSpecDirs: [%s]
runtimeHandlers:
  runc: {}
  nvidia: {cdiDevices: [berth.test/gadget=third]}
nri: {%s}
`, specs, patientWithPlugins())
	})
	pod := n.RunPod(t, "cdi")
	n.NeedImage(t, images.Tools)
	field := func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: "berth.test/gadget=first"}} }
	wantRefused(t, pod, codes.InvalidArgument, "berth.test/gadget=first", field)

	// A driver that comes later is seen at once.
	if err := os.Mkdir(specs, 0o755); err != nil {
		t.Fatal(err)
	}
	var devices []any
	for _, name := range []string{"first", "second", "third", "fourth"} {
		devices = append(devices, gadget(node, file, name))
	}
	cdiSpec{"cdiVersion": "0.6.0", "kind": "berth.test/gadget", "devices": devices}.write(t, filepath.Join(specs, "gadget.json"))
	cdiSpec{"cdiVersion": "nonsense"}.write(t, filepath.Join(specs, "broken.json"))

	byField := pod.Idle(t, "field", field)
	byAnnotation := pod.Idle(t, "annotation", func(c *cri.ContainerConfig) {
		c.Annotations = map[string]string{"cdi.k8s.io/plugin_a": "berth.test/gadget=second,berth.test/gadget=first", "other": "berth.test/gadget=fourth"}
	})
	both := pod.Idle(t, "both", field, func(c *cri.ContainerConfig) {
		c.Annotations = map[string]string{"cdi.k8s.io/plugin_a": "berth.test/gadget=first"}
	})
	config := n.PodConfig("nvidia")
	resp, err := n.Runtime.RunPodSandbox(harness.Ctx(t), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "nvidia"})
	if err != nil {
		t.Fatal(err)
	}
	special := &harness.Pod{Node: n, ID: resp.PodSandboxId, Config: config}
	t.Cleanup(func() { special.Remove(t) })
	byHandler := special.Idle(t, "handler")

	p := &plugin{adjust: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		a.AddCDIDevice(&api.CDIDevice{Name: "berth.test/gadget=fourth"})
		return a, nil
	}}
	p.connect(t, n, "10")
	byPlugin := pod.Idle(t, "plugin", field)
	if told := p.find(t, pod.ID, "CreateContainer plugin").container.GetCDIDevices(); len(told) != 1 || told[0].GetName() != "berth.test/gadget=first" {
		t.Errorf("the plugin is told of %v", told)
	}

	for c, want := range map[*harness.Container]string{
		byField: "first", byAnnotation: "first second", both: "first", byHandler: "third", byPlugin: "first fourth",
	} {
		for _, name := range []string{"first", "second", "third", "fourth"} {
			if got, want := hasGadget(t, c, name), strings.Contains(want, name); got != want {
				t.Errorf("container by %s: has the %s gadget: %v", c.Config.Metadata.Name, name, got)
			}
		}
	}
	if got := allowed(t, byField, "/dev/first"); got != "rw" {
		t.Errorf("with a CDI device: may %s", got)
	}
	wantRefused(t, pod, codes.InvalidArgument, "berth.test/gadget=fifth", func(c *cri.ContainerConfig) {
		c.Annotations = map[string]string{"cdi.k8s.io/plugin_a": "berth.test/gadget=fifth"}
	})
	wantRefused(t, pod, codes.InvalidArgument, "qualified", func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: "gadget"}} })
}
