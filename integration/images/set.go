package images

import (
	"crypto/sha256"
	"fmt"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// critestImages are what critest asks for, behaving as it expects: a busybox with the applets that its specs run, web
// servers on ports 80 and 12003 that answer any request, of which nginx writes its pid and calls itself "master process"
// in /proc, an httpd that prints its name, and many small ones that are only pulled and listed.
func critestImages(busybox *Tree, programs map[string]string) []Image {
	const (
		e2e     = "registry.k8s.io/e2e-test-images/"
		staging = "gcr.io/k8s-staging-cri-tools/"
		master  = "nginx: master process nginx -g daemon off;"
	)
	nginx := add(NewTree(), "usr/sbin/nginx", programs["web"], 0o755)
	images := []Image{
		{
			Names:  []string{e2e + "busybox:1.29-2"},
			Config: ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"sh"}},
			Layers: []*Tree{busybox},
			Form:   Form{Index: true},
		},
		{
			Names: []string{e2e + "nginx:1.14-2"},
			Config: ocispec.ImageConfig{
				Env: []string{searchPath}, StopSignal: "SIGQUIT", ExposedPorts: map[string]struct{}{"80/tcp": {}},
				Cmd: []string{"nginx", "-listen", ":80", "-pid-file", "/var/run/nginx.pid", "-title", master},
			},
			Layers: []*Tree{busybox, nginx},
			Form:   Form{Docker: true},
		},
		{
			Names: []string{staging + "hostnet-nginx-amd64:latest", staging + "hostnet-nginx-arm64:latest"},
			Config: ocispec.ImageConfig{
				Env: []string{searchPath}, StopSignal: "SIGQUIT",
				Cmd: []string{"nginx", "-listen", ":12003", "-pid-file", "/var/run/nginx.pid", "-title", master},
			},
			Layers: []*Tree{busybox, nginx},
		},
		{
			Names: []string{e2e + "httpd:2.4.39-4"},
			Config: ocispec.ImageConfig{
				Env: []string{searchPath}, ExposedPorts: map[string]struct{}{"80/tcp": {}},
				Cmd: []string{"httpd-foreground", "-listen", ":80", "-greeting", "httpd "},
			},
			Layers: []*Tree{busybox, add(NewTree(), "usr/local/bin/httpd-foreground", programs["web"], 0o755)},
		},
		{
			Names:  []string{e2e + "nonewprivs:1.3"},
			Config: ocispec.ImageConfig{Env: []string{searchPath}, Entrypoint: []string{"/nnp"}},
			Layers: []*Tree{add(NewTree(), "nnp", programs["nonewprivs"], 0o4755)},
		},
		{
			Names:  []string{"registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"},
			Config: ocispec.ImageConfig{User: "65535:65535", Env: []string{searchPath}, WorkingDir: "/", Entrypoint: []string{"/pause"}},
			Layers: []*Tree{add(NewTree(), "pause", programs["pause"], 0o755)},
			Form:   Form{Index: true},
		},
		{
			Names:  []string{staging + "test-image-predefined-group:latest"},
			Config: ocispec.ImageConfig{User: "1000", Env: []string{searchPath}, Cmd: []string{"sh"}},
			Layers: []*Tree{busybox, NewTree().
				Text("etc/passwd", passwd+"default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh\n").
				Text("etc/group", group+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n").
				Dir("home/default-user", 0o755).Owner("home/default-user", 1000, 1000)},
		},
	}
	for _, u := range []struct{ name, user string }{
		{"uid", "1002"}, {"username", "www-data"}, {"uid-group", "1003:1004"}, {"username-group", "www-data:1004"},
	} {
		images = append(images, marker(busybox, u.user, "user-"+u.name, staging+"test-image-user-"+u.name+":latest"))
	}
	for _, name := range []string{"1", "2", "3", "latest"} {
		images = append(images, marker(busybox, "", name, staging+"test-image-"+name+":latest"))
	}
	return append(images,
		marker(busybox, "", "test", staging+"test-image-tag:test"),
		marker(busybox, "", "all", staging+"test-image-tag:all"),
		marker(busybox, "", "same-image", staging+"test-image-tags:1", staging+"test-image-tags:2", staging+"test-image-tags:3"))
}

// marker is a busybox with one file more, for tests that look at the image and run what it says at most.
func marker(busybox *Tree, user, text string, names ...string) Image {
	return Image{
		Names:  names,
		Config: ocispec.ImageConfig{User: user, Env: []string{searchPath}, Cmd: []string{"sh"}},
		Layers: []*Tree{busybox, NewTree().Text(text, text+"\n")},
	}
}

// Names of the images that the integration tests use.
const (
	Registry = "registry.berth.test"

	Tools       = Registry + "/tools:1"       // busybox and the web server, an index in gzip
	ToolsZstd   = Registry + "/tools:zstd"    // the same layers in zstd
	ToolsDocker = Registry + "/tools:docker"  // the same as a Docker manifest
	Private     = Registry + "/private:1"     // for registries that ask for a login
	StopByUSR1  = Registry + "/stop-signal:1" // asks for SIGUSR1 as its stop signal
	Volume      = Registry + "/volume:1"      // files for image volumes: top, dir/inner
	Whiteouts   = Registry + "/whiteouts:1"   // later layers remove what earlier ones have
	Entrypoint  = Registry + "/entrypoint:1"  // entrypoint, command, user, working folder and environment
	Layered     = Registry + "/layered:1"     // three layers of many files that no other image has
	Health      = Registry + "/health:1"      // busybox and a server that is told whether it is well
)

// ownImages are for the tests of this repository.
func ownImages(busybox *Tree, programs map[string]string) []Image {
	shell := ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"sh"}}
	tools := []*Tree{busybox, add(NewTree(), "usr/bin/web", programs["web"], 0o755)}
	usr1 := shell
	usr1.StopSignal = "SIGUSR1"
	return []Image{
		demoImage(busybox, programs),
		{Names: []string{Tools}, Config: shell, Layers: tools, Form: Form{Index: true}},
		{Names: []string{ToolsZstd}, Config: shell, Layers: tools, Form: Form{Zstd: true}},
		{Names: []string{ToolsDocker}, Config: shell, Layers: tools, Form: Form{Docker: true, Index: true}},
		{Names: []string{StopByUSR1}, Config: usr1, Layers: []*Tree{busybox}},
		marker(busybox, "", "private", Private),
		{Names: []string{Volume}, Config: shell, Layers: []*Tree{
			NewTree().Text("top", "top of the volume\n").Text("dir/inner", "inner file\n"),
		}},
		{Names: []string{Whiteouts}, Config: shell, Layers: []*Tree{
			busybox,
			NewTree().Text("gone", "x").Text("emptied/old", "x").Text("kept/a", "a").Symlink("link", "kept"),
			NewTree().Text(".wh.gone", "").Text("emptied/.wh..wh..opq", "").Text("emptied/new", "new").Text("kept/b", "b"),
		}},
		{Names: []string{Entrypoint}, Config: ocispec.ImageConfig{
			User: "www-data", Env: []string{searchPath, "FROM_IMAGE=image", "BOTH=image"}, WorkingDir: "/var/www",
			Entrypoint: []string{"sh", "-c", `echo "args: $*"; echo "user: $(id -un)"; echo "dir: $PWD"; echo "env: $FROM_IMAGE $BOTH"`, "entrypoint"},
			Cmd:        []string{"from", "image"},
		}, Layers: []*Tree{busybox}},
		{Names: []string{Health}, Config: ocispec.ImageConfig{Env: []string{searchPath}, Entrypoint: []string{"/usr/bin/health"}},
			Layers: []*Tree{busybox, add(NewTree(), "usr/bin/health", programs["health"], 0o755)}},
		{Names: []string{Layered}, Config: shell, Layers: []*Tree{bulk("a"), bulk("b"), bulk("c")}},
	}
}

// bulk is a layer of 4 MiB in 64 files that compresses badly enough to take some time.
func bulk(name string) *Tree {
	t := NewTree()
	for i := range 64 {
		data := make([]byte, 0, 64<<10)
		for sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", name, i)); len(data) < cap(data); sum = sha256.Sum256(sum[:]) {
			data = append(data, sum[:]...)
		}
		t.File(fmt.Sprintf("%s/%d", name, i), 0o644, data)
	}
	return t
}

// demoImage is what the demo pod runs: one static program and nothing else.
func demoImage(busybox *Tree, programs map[string]string) Image {
	return Image{
		Names:  []string{DemoName},
		Config: ocispec.ImageConfig{Env: []string{searchPath}, Entrypoint: []string{"/web"}, Cmd: []string{"-listen", ":8080"}, ExposedPorts: map[string]struct{}{"8080/tcp": {}}},
		Layers: []*Tree{busybox, add(NewTree().Dir("tmp", 0o1777), "web", programs["web"], 0o755)},
	}
}

// add adds a program that buildPrograms has just made; that it cannot be read is a broken machine.
func add(t *Tree, name, file string, mode int64) *Tree {
	data, err := os.ReadFile(file)
	if err != nil {
		panic(fmt.Sprintf("read the program just built: %v", err))
	}
	return t.File(name, mode, data)
}
