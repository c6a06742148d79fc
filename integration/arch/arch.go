// Package arch holds the rules of who may import whom, as a table that its test enforces.
package arch

// A Rule says what of this module a package, and everything below it, may import. Paths are relative to the module; one
// that ends in "/..." stands for all below it too. The longest Package that fits an importer decides.
type Rule struct {
	Package string
	May     []string
	Why     string
}

// Rules are all rules: a package that fits none is an error, so that a new room gets its place in the house.
var Rules = []Rule{
	{"cmd/berth", []string{"cri", "kubelet", "kubelet/...", "runtime", "runtime/...", "network/...", "cgroups", "internal/..."},
		"flags and wiring; what a command does is done below"},
	{"cmd/berth-keeper", []string{"runtime/keeper/...", "internal/..."},
		"the keeper can be read in an afternoon and outlives every daemon"},
	{"cmd/berth-launch", []string{"runtime/launch/...", "runtime/keeper", "internal/..."},
		"every start and every exec pays for the package init of what is linked here"},

	{"cri", []string{"runtime", "runtime/...", "cgroups", "internal/..."},
		"the door checks, calls runtime and maps errors; it decides nothing and knows no network"},
	{"kubelet", []string{"kubelet/...", "runtime", "runtime/...", "cgroups", "internal/..."},
		"it joins the rooms below it, and calls runtime as the door does"},
	{"kubelet/manifest", []string{"internal/..."}, "documents in, objects out"},
	{"kubelet/source", []string{"kubelet/manifest", "internal/..."}, "what is declared; not what becomes of it"},
	{"kubelet/binding", []string{"kubelet/manifest", "kubelet/source", "internal/..."}, "which volume a claim has; not what is in it"},
	{"kubelet/plan", []string{"internal/..."}, "pure: what is wanted and what is there in, what to do out"},
	{"kubelet/podspec", []string{"kubelet/resource", "internal/..."}, "a pod in, CRI configurations out"},
	{"kubelet/volume", []string{"kubelet/podspec", "internal/..."}, "it knows files, not containers"},
	{"kubelet/userns", []string{"internal/..."}, "ranges of IDs, and whose they are"},
	{"kubelet/resource", []string{"cgroups", "internal/..."}, "pods as numbers, and their cgroups"},
	{"kubelet/probe", []string{"internal/..."}, "results out; what follows from them is plan's"},
	{"kubelet/evict", []string{"internal/..."}, "who has to go; it is told what there is, and has others do it"},
	{"kubelet/pull", []string{"runtime/image", "internal/..."}, "an image, or why not"},
	{"kubelet/rotate", []string{"internal/..."}, "it knows files; who writes them is told to begin a new one"},
	{"kubelet/hook", []string{"internal/..."}, "it is told what to run where"},
	{"kubelet/feed", []string{"internal/..."}, "a table of any objects"},
	{"kubelet/event", []string{"kubelet/feed", "internal/..."}, "it keeps what it is told"},
	{"kubelet/ctl", []string{"kubelet/server", "internal/..."}, "the other end of the server's socket"},
	{"kubelet/server", []string{"kubelet", "kubelet/...", "runtime", "runtime/...", "cgroups", "internal/..."},
		"a door: it checks, asks and streams"},
	{"runtime", []string{"runtime/...", "network/...", "cgroups", "internal/..."},
		"it joins the rooms below it and knows nothing of the doors above"},

	{"runtime/spec", []string{"internal/..."}, "pure: configuration in, OCI spec out"},
	{"runtime/keeper", []string{"internal/..."}, "the protocol, which both ends link"},
	{"runtime/keeper/server", []string{"runtime/keeper", "runtime/crilog", "internal/..."},
		"it writes the containers' logs; no libcontainer, gRPC, Kubernetes, image or network code"},
	{"runtime/launch/monitor", nil, "it is for the linker"},
	{"runtime/launch/stages", nil, "it is for the linker"},
	{"runtime/launch", []string{"runtime/launch/filter", "runtime/keeper", "internal/..."}, "it takes its jobs in the keeper's words"},
	{"runtime/launch/filter", []string{"internal/..."}, "init pays for its package init too"},
	{"runtime/crilog", []string{"internal/..."}, "linked by the keeper"},
	{"runtime/image", []string{"runtime/image/layer", "internal/..."}, "images know nothing of containers"},
	{"runtime/image/layer", []string{"internal/..."}, "layers know nothing of images' names"},
	{"runtime/checkpoint", []string{"internal/..."}, "siblings do not know each other"},
	{"runtime/nri", []string{"internal/..."}, "siblings do not know each other"},
	{"internal/pause", nil, "an embedded program"},
	{"internal/hold", nil, "an embedded program"},
	{"internal/enter", []string{"internal/spawn", "internal/wire"}, "an embedded program, and how it is told what to do"},
	{"runtime/sandboxns", []string{"internal/...", "network/netns"}, "pins namespaces, the network's among them"},

	{"network", []string{"network/netns", "internal/..."}, "it knows paths, not pods"},
	{"network/netns", []string{"internal/..."}, "it knows paths, not networks"},
	{"cgroups", []string{"internal/..."}, "it knows paths, not pods"},
	{"internal", []string{"internal/..."}, "the ground floor"},

	{"integration", []string{"integration/..."}, "the tests see a black box"},
	{"integration/chaos", []string{"integration/...", "internal/failpoint"}, "a black box but for the names of its steps"},
}

// A Ban keeps packages of other modules to those that are named: nobody else may import them.
type Ban struct {
	Prefix string
	Except []string
	Why    string
}

// Bans are all bans.
var Bans = []Ban{
	{"github.com/opencontainers/runc", []string{"runtime/launch/...", "cmd/berth-launch"},
		"libcontainer re-executes the binary that links it, can stick and can panic: one process per job confines that"},
	{"google.golang.org/grpc", []string{"cri", "cmd/berth", "integration/..."},
		"gRPC and its codes live in cri; below it errors have classes"},
	{"k8s.io/cri-streaming", []string{"internal/stream", "cri"},
		"the streams' protocols stay in one room"},
	{"github.com/sirupsen/logrus", []string{"runtime/launch", "cmd/berth-launch", "runtime/image"},
		"we log by log/slog; libcontainer and containerd log by it, and those who link them turn that off"},
}
