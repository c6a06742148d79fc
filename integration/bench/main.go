// Command bench measures berth beside other runtimes that speak the CRI, in one run and by turns, so that what the
// machine does meanwhile falls on all alike.
//
//	bench [-cases start,stop,…] [-targets berth,…] [-n 15] [-json FILE]
//
// It starts nodes of berth itself: one with the built-in network, and one with CNI plugins. The others run already and
// are given by BENCH_PEERS, as name=socket,name=socket. The images come from a registry on a fixed loopback address
// (BENCH_REGISTRY) in plain HTTP; a peer must accept that, and may take its pause image from there (bench/pause:1). For
// the same CNI configuration on all sides BENCH_CNI_CONF_DIR and BENCH_CNI_BIN_DIR name the peers' folders. What a peer
// uses can be told only if it runs in a cgroup of its own (of the cpuacct hierarchy on cgroup v1).
//
// What a change of berth gives is measured with -builds: the programs of before beside those of now, by turns.
//
// The cases manifest and lone start a node by itself, and compare it with podman kube play if BENCH_PODMAN is its command.
//
// A ratio is berth's median by the other's. The program fails if a measurement does, never because of what it shows.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-node/berth/integration/harness"
	"github.com/berth-node/berth/integration/images"
	"github.com/berth-node/berth/integration/registry"
)

const (
	appImage   = images.BenchApp
	largeImage = images.BenchLarge
	filesImage = images.BenchFiles
)

// A bench is one run.
type bench struct {
	registry *registry.Registry
	address  string
	hosts    string // the certs.d folder
	targets  []*target
	report   report
	floor    *floor // nil for none

	n        int // measurements of each target in a case
	density  int
	idle     time.Duration
	allPeers bool
	only     []string // names of the targets to measure; empty for all
	builds   []string // folders with the programs of other builds of berth
}

// cases in the order they run. The quick ones are those of a run without -cases.
var cases = []struct {
	name  string
	quick bool
	run   func(*bench, context.Context) error
}{
	{"start", true, (*bench).caseStart},
	{"rested", true, (*bench).caseRested},
	{"small", true, (*bench).caseSmall},
	{"hostnet", true, (*bench).caseHostNetwork},
	{"parallel", true, (*bench).caseParallel},
	{"exec", true, (*bench).caseExec},
	{"execload", true, (*bench).caseExecLoad},
	{"memory", true, (*bench).caseMemory},
	{"pull", true, (*bench).casePull},
	{"density", false, (*bench).caseDensity},
	{"manifest", false, (*bench).caseManifest},
	{"lone", false, (*bench).caseLone},
}

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatalf("bench: %v", err)
	}
}

func run(ctx context.Context) (err error) {
	var names []string
	for _, c := range cases {
		names = append(names, c.name)
	}
	chosen := flag.String("cases", "", "which of "+strings.Join(names, ",")+"; empty for those of the CRI but density")
	n := flag.Int("n", 10, "measurements of each runtime in a case")
	density := flag.Int("pods", 500, "pods in the density case")
	idle := flag.Duration("idle", 30*time.Second, "how long the density case watches an idle node")
	allPeers := flag.Bool("dense-peers", false, "the density case measures the peers too")
	only := flag.String("targets", "", "which of the runtimes, by name; empty for all")
	builds := flag.String("builds", "", "`folders` with the programs of other builds, each measured as a runtime of the folder's name")
	out := flag.String("json", "", "`file` for all that was measured")
	flag.Parse()
	wanted := list(*chosen)
	for _, w := range wanted {
		if !slices.Contains(names, w) {
			return fmt.Errorf("no case %q; there are %s", w, strings.Join(names, ", "))
		}
	}

	b := &bench{
		n: *n, density: *density, idle: *idle, allPeers: *allPeers, only: list(*only), builds: list(*builds),
		address: env("BENCH_REGISTRY", "127.0.0.1:5055"),
	}
	stop, err := b.prepare(ctx)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	if err := b.checkTargets(); err != nil {
		return err
	}
	b.introduce()
	for _, c := range cases {
		if len(wanted) == 0 && !c.quick || len(wanted) > 0 && !slices.Contains(wanted, c.name) {
			continue
		}
		if err := c.run(b, ctx); err != nil {
			return fmt.Errorf("case %s: %w", c.name, err)
		}
	}
	if *out != "" {
		return b.report.write(*out)
	}
	return nil
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func (b *bench) ref(image string) string { return b.address + "/" + image }

// publish prints a table and keeps it for the report.
func (b *bench) publish(t *table) {
	t.print(os.Stdout)
	b.report.Tables = append(b.report.Tables, t)
}

// prepare makes the images, serves them, and brings the targets up. stop ends what runs, also after an error.
func (b *bench) prepare(ctx context.Context) (stop func() error, err error) {
	var undo []func() error
	stop = func() error {
		var errs []error
		for _, f := range slices.Backward(undo) {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return stop, err
	}
	undo = append(undo, func() error { return os.RemoveAll(dir) })
	if b.floor, err = openFloor(dir); err != nil {
		return stop, err
	}
	if b.registry, err = openImages(ctx, b.address); err != nil {
		return stop, err
	}
	server, err := registry.Listen(b.registry, b.address)
	if err != nil {
		return stop, fmt.Errorf("registry (see BENCH_REGISTRY): %w", err)
	}
	undo = append(undo, func() error { server.Close(); return nil })
	hosts := filepath.Join(dir, "certs.d")
	b.hosts = hosts
	if err := server.WriteHosts(hosts, b.address); err != nil {
		return stop, err
	}
	cni, err := network(dir)
	if err != nil {
		return stop, err
	}
	undo = append(undo, cni.Close)
	add := func(name string, launch func() (*target, error)) error {
		if len(b.only) > 0 && !slices.Contains(b.only, name) {
			return nil
		}
		t, err := launch()
		if err == nil {
			b.targets = append(b.targets, t)
			undo = append(undo, t.close, func() error { return removePodCgroups(t.pods) })
			t.app, err = t.pull(ctx, b.ref(appImage))
		}
		return err
	}
	if err := add("berth", func() (*target, error) { return launchBerth("berth", nil, hosts) }); err != nil {
		return stop, err
	}
	if err := add("berth+cni", func() (*target, error) { return launchBerth("berth+cni", cni.CNI, hosts) }); err != nil {
		return stop, err
	}
	for _, dir := range b.builds {
		name := "berth-" + filepath.Base(dir)
		if err := add(name, func() (*target, error) {
			return launch(name, harness.Options{HostsDir: hosts, Programs: dir}, func(*harness.Node) {})
		}); err != nil {
			return stop, err
		}
	}
	for peer := range strings.SplitSeq(os.Getenv("BENCH_PEERS"), ",") {
		if peer == "" {
			continue
		}
		name, socket, ok := strings.Cut(peer, "=")
		if !ok {
			return stop, fmt.Errorf("BENCH_PEERS: %q is not name=socket", peer)
		}
		if err := add(name, func() (*target, error) { return dialPeer(name, socket) }); err != nil {
			return stop, err
		}
	}
	return stop, nil
}

// openImages returns a registry with the images, which are made the first time.
func openImages(ctx context.Context, address string) (*registry.Registry, error) {
	layout := filepath.Join(harness.Root(), "out", "bench-images", strings.ReplaceAll(address, ":", "-"))
	r, err := registry.Open(layout)
	if err == nil {
		return r, nil
	}
	program := filepath.Join(harness.Root(), "internal", "pause", "pause_"+runtime.GOARCH)
	if err := images.MakeBench(ctx, layout, filepath.Join(harness.Root(), "out", "cache"), address, program); err != nil {
		return nil, fmt.Errorf("make the images: %w", err)
	}
	return registry.Open(layout)
}

// checkTargets returns an error if one was asked for that there is not.
func (b *bench) checkTargets() error {
	for _, name := range b.only {
		if !slices.ContainsFunc(b.targets, func(t *target) bool { return t.name == name }) {
			return fmt.Errorf("no runtime %q; there are berth, berth+cni, berth-NAME of -builds, and those of BENCH_PEERS", name)
		}
	}
	return nil
}

func list(commas string) []string {
	return strings.FieldsFunc(commas, func(r rune) bool { return r == ',' })
}

// cniNetwork is the network of the node with CNI; Close does nothing to one that the peers have.
type cniNetwork struct {
	*harness.CNI
	shared bool
}

func (c cniNetwork) Close() error {
	if c.shared {
		return nil
	}
	return c.CNI.Close()
}

func network(dir string) (cniNetwork, error) {
	if conf := os.Getenv("BENCH_CNI_CONF_DIR"); conf != "" {
		bin := env("BENCH_CNI_BIN_DIR", harness.Tool("cni"))
		return cniNetwork{&harness.CNI{ConfDir: conf, BinDir: bin}, true}, nil
	}
	cni, err := harness.NewCNI(filepath.Join(dir, "cni"), "berthbench0")
	return cniNetwork{cni, false}, err
}

// introduce prints and records on what and of what this is.
func (b *bench) introduce() {
	var uname syscall.Utsname
	_ = syscall.Uname(&uname) // cannot fail
	kernel := make([]byte, 0, len(uname.Release))
	for _, c := range uname.Release {
		if c == 0 {
			break
		}
		kernel = append(kernel, byte(c))
	}
	cgroup := "v1"
	if all, err := hierarchies(); err == nil && all[""] != "" {
		cgroup = "v2"
	}
	b.report.Time = time.Now().UTC().Format(time.RFC3339)
	b.report.Machine = map[string]string{
		"cpus": fmt.Sprint(runtime.NumCPU()), "kernel": string(kernel), "arch": runtime.GOARCH, "cgroup": cgroup,
	}
	b.report.Versions = map[string]string{}
	fmt.Printf("%s, %d CPUs, Linux %s, cgroup %s\n", b.report.Time, runtime.NumCPU(), kernel, cgroup)
	for _, t := range b.targets {
		b.report.Versions[t.name] = t.version
		fmt.Printf("  %-16s %s\n", t.name, t.version)
		if t.own == "" {
			fmt.Printf("  %-16s CPU and memory are not measured: it is in our own cgroup\n", "")
		}
	}
}
