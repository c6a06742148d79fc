# berth: what a newcomer needs is `make run` (as root) and `make test` (as root). `make help` lists the rest.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# sudo takes the usual place of Go out of the path.
GO      ?= $(or $(shell command -v go),/usr/local/go/bin/go)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
# By these Kubernetes' libraries name themselves, to whom a gRPC probe asks for one: the version of the kubelet that this one follows.
KUBELET := -X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36
GOBUILD := $(GO) build -trimpath -buildvcs=false

# Tests that pass a whole suite to go test take long; what hangs should still end.
TEST_TIMEOUT ?= 20m
# One or more specs of critest, as a regular expression: make critest FOCUS='port mapping'
FOCUS ?=
# One or more of the integration tests: make test-integration RUN=TestRestart
RUN ?=
# How long, in seconds, and which of the fuzz targets: make fuzz FUZZTIME=600 FUZZ='^FuzzUser$'
FUZZTIME ?= 60
FUZZ ?=
# More flags for every go test: make test TESTFLAGS=-v
TESTFLAGS ?=
# The runner of a virtual machine with cgroup v2, called as $(V2_VM) $(V2_VM_FLAGS) -- COMMAND in this folder, which it shares.
# AppArmor's parser is for critest, where the machine's kernel has AppArmor; the NFS server for the suite pods.
V2_VM ?=
V2_VM_FLAGS ?= -m 4G -t 14400 --packages "apparmor criu nfs-kernel-server"
# What of the suite test-v2 runs: integration, pods, chaos, critest, kubelet (after make kubelet).
SUITES ?= integration pods critest

CRI_TOOLS := sigs.k8s.io/cri-tools
TOOLS     := cd integration/tools && CGO_ENABLED=0 $(GO)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

include internal/embedded.mk
include internal/pause/Makefile
include internal/enter/Makefile
include internal/hold/Makefile

##@ Build

.PHONY: deps
deps: ## Install the Debian packages that are missing (as root)
	@packaging/deps

.PHONY: build
build: bin/berth bin/berth-keeper bin/berth-launch ## Build the three programs into bin/

# The go command knows best what has changed, so these run each time.
.PHONY: FORCE
FORCE:

bin/berth: FORCE
	CGO_ENABLED=0 $(GOBUILD) -ldflags '$(LDFLAGS) $(KUBELET)' -o $@ ./cmd/berth

bin/berth-keeper: FORCE
	CGO_ENABLED=0 $(GOBUILD) -ldflags '$(LDFLAGS)' -o $@ ./cmd/berth-keeper

# libcontainer needs cgo, seccomp profiles need libseccomp. Static, it starts faster and runs on any distribution.
bin/berth-launch: deps FORCE
	CGO_ENABLED=1 $(GOBUILD) -tags 'seccomp netgo osusergo' -ldflags '$(LDFLAGS) -linkmode external -extldflags -static' -o $@ ./cmd/berth-launch

# The same programs with named points at which tests can kill them: see internal/failpoint.
.PHONY: failpoints
failpoints: deps
	CGO_ENABLED=0 $(GOBUILD) -tags failpoints -ldflags '$(LDFLAGS) $(KUBELET)' -o bin/failpoints/ ./cmd/berth ./cmd/berth-keeper
	CGO_ENABLED=1 $(GOBUILD) -tags 'failpoints seccomp netgo osusergo' -ldflags '$(LDFLAGS) -linkmode external -extldflags -static' -o bin/failpoints/ ./cmd/berth-launch

bin/demo-web.tar: FORCE
	@mkdir -p bin
	@$(GO) run ./integration/cmd/testimages demo -file $@

##@ Run

.PHONY: run
run: as-root deps build crictl bin/demo-web.tar ## Start a node with a demo pod until Ctrl-C (as root)
	@packaging/demo/run.sh

# Before the build, which takes minutes the first time.
.PHONY: as-root
as-root:
	@((EUID == 0)) || { echo "containers need root; as root, or: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

##@ Test

.PHONY: test
test: lint test-unit test-integration test-chaos critest ## Run all tests, critest included (as root)

.PHONY: test-unit
test-unit: deps cni-plugins ## Run the unit tests; as a user without root those that need it are skipped
	BERTH_TEST_CNI_BIN='$(CURDIR)/bin/tools/cni' $(GO) test -tags seccomp $(TESTFLAGS) ./...
	$(GO) test -tags failpoints $(TESTFLAGS) ./internal/failpoint

.PHONY: test-integration
test-integration: build tools images ## Run the black-box tests on this kernel (as root)
	$(GO) test -tags integration -count=1 -timeout $(TEST_TIMEOUT) $(TESTFLAGS) $(if $(RUN),-v -run '$(RUN)') -p 1 ./integration ./integration/pods

.PHONY: test-chaos
test-chaos: build failpoints tools images ## Kill daemon and keeper at every step, and at random moments (as root); SEED=n repeats a run
	SEED='$(SEED)' $(GO) test -tags integration -count=1 -timeout $(TEST_TIMEOUT) $(TESTFLAGS) $(if $(RUN),-v -run '$(RUN)') ./integration/chaos

.PHONY: soak
soak: build failpoints tools images ## 10,000 execs, and kill them thousands of times at random moments (as root); KILLS=n SEED=n
	BERTH_TEST_EXECS='$(or $(EXECS),10000)' $(GO) test -tags integration -count=1 -timeout 1h -v -run 'TestManyExecs' ./integration
	KILLS='$(or $(KILLS),5000)' SEED='$(SEED)' $(GO) test -tags integration -count=1 -timeout 24h -v -run 'TestKilledAtRandom' ./integration/chaos

.PHONY: bench-recovery
bench-recovery: build failpoints tools images ## Time the start of a daemon that finds 200 pods (as root)
	$(GO) test -tags integration -count=1 -timeout $(TEST_TIMEOUT) -run '^$$' -bench Recovery -benchtime 5x ./integration/chaos

.PHONY: critest
critest: build tools images ## Run critest against a node of its own (as root); FOCUS=regexp runs some specs
	CRITEST_FOCUS='$(FOCUS)' $(GO) test -tags integration -count=1 -timeout 40m -v ./integration/critest

.PHONY: test-race
test-race: tools images out/race ## Run the unit tests, and the black-box tests against a node, under the race detector (as root)
	$(GO) test -race -tags seccomp -timeout $(TEST_TIMEOUT) $(TESTFLAGS) $(addsuffix /...,$(RACE_UNITS))
	$(call race-nodes,-race $(if $(RUN),-v -run '$(RUN)') -p 1 ./integration ./integration/pods)

.PHONY: test-race-short
test-race-short: crictl cni-plugins images out/race ## A part of test-race, of a few minutes: where goroutines meet most (as root)
	$(GO) test -race -short -tags seccomp -timeout $(TEST_TIMEOUT) $(TESTFLAGS) $(RACE_SHORT_UNITS)
	$(call race-nodes,-run '^($(subst $(space),|,$(RACE_SHORT)))$$' ./integration)

RACE_UNITS := ./cgroups ./cmd ./cri ./internal ./kubelet ./network ./runtime
RACE_SHORT_UNITS := ./cri/... ./internal/dirwatch ./internal/handover ./internal/hostpath ./internal/stream ./kubelet/... \
	./runtime ./runtime/crilog ./runtime/keeper ./runtime/nri
RACE_SHORT := TestClientsThatNeverRead TestDamagedFilesOfTheRunDir TestExecSync TestFlushedRulesComeBack TestKeeperAndDaemonKilled \
	TestKilledDaemonLosesNothing TestNRI TestNRIPluginComesBack TestOtherPullsGoOn TestThousandStreams TestUpgradeReplacesTheKeeper \
	TestUpgradeWithUnusedURL TestWipedRunDirWithoutDaemon
empty :=
space := $(empty) $(empty)

# A race in a program that a test runs need not fail that test.
define race-nodes
	rm -rf out/race/logs && mkdir -p out/race/logs
	@status=0; BERTH_TEST_ROOT='$(CURDIR)/out/race' BERTH_TEST_SLOWNESS=4 GORACE='log_path=$(CURDIR)/out/race/logs/race' \
		$(GO) test -tags integration -count=1 -timeout 40m $(TESTFLAGS) $(1) || status=1; \
	if compgen -G 'out/race/logs/race*' >/dev/null; then cat out/race/logs/race*; status=1; fi; exit $$status
endef

# The launcher is as always: it is one goroutine that calls libcontainer, and static.
.PHONY: out/race
out/race: bin/berth-launch
	mkdir -p $@/bin $@/out
	CGO_ENABLED=1 $(GO) build -race -trimpath -buildvcs=false -o $@/bin/berth ./cmd/berth
	CGO_ENABLED=1 $(GO) build -race -trimpath -buildvcs=false -o $@/bin/berth-keeper ./cmd/berth-keeper
	cp bin/berth-launch $@/bin/
	ln -sfn ../../../bin/tools $@/bin/tools
	ln -sfn ../../images $@/out/images

.PHONY: fuzz
fuzz: ## Fuzz all parsers for FUZZTIME seconds in all (60; as root); FUZZ=regexp takes some
	@GO='$(GO)' FUZZTIME='$(FUZZTIME)' FUZZ='$(FUZZ)' integration/fuzz/run

.PHONY: test-v2
test-v2: out/v2 ## Run the suite on cgroup v2: here, or in the virtual machine started by $V2_VM
	@V2_VM='$(V2_VM)' V2_VM_FLAGS='$(V2_VM_FLAGS)' RUN='$(RUN)' FOCUS='$(FOCUS)' integration/v2/test-v2 $(SUITES)

.PHONY: test-v2-systemd
test-v2-systemd: out/v2 ## The same with systemd as PID 1, which then makes the cgroups
	@V2_VM='$(V2_VM)' V2_VM_FLAGS='$(V2_VM_FLAGS) --systemd' BERTH_TEST_CGROUP_DRIVER=systemd RUN='$(RUN)' FOCUS='$(FOCUS)' integration/v2/test-v2 $(SUITES)

# All that the suite needs, to be run on another machine without Go: out/v2/run.sh
.PHONY: out/v2
out/v2: build failpoints tools images
	rm -rf $@ && mkdir -p $@/out $@/bin
	cp bin/berth bin/berth-keeper bin/berth-launch $@/bin/
	cp -r bin/tools $@/bin/tools
	cp -r bin/failpoints $@/bin/failpoints
	cp -r out/images $@/out/images
	CGO_ENABLED=0 $(GO) test -c -tags integration -o $@/integration.test ./integration
	CGO_ENABLED=0 $(GO) test -c -tags integration -o $@/pods.test ./integration/pods
	CGO_ENABLED=0 $(GO) test -c -tags integration -o $@/critest.test ./integration/critest
	CGO_ENABLED=0 $(GO) test -c -tags integration -o $@/chaos.test ./integration/chaos
	CGO_ENABLED=0 $(GO) test -c -tags integration -o $@/kubelet.test ./integration/kubelet
	cp integration/v2/run.sh $@/run.sh

# Beside which runtimes, and how they are given: integration/bench. BENCHFLAGS='-cases start,density -n 20 -json FILE'
BENCHFLAGS ?=
.PHONY: bench
bench: build cni-plugins deps ## Measure speed and size, beside the runtimes of $BENCH_PEERS (as root; on a machine that does nothing else)
	CGO_ENABLED=0 $(GOBUILD) -o bin/bench ./integration/bench
	$(CC) -O2 -Wall -Wextra -static -o bin/bench-floor integration/bench/floor/floor.c
	bin/bench $(BENCHFLAGS)

.PHONY: test-kubelet
test-kubelet: build kubelet images ## Run an upstream kubelet against a node (as root; compiles it, which takes minutes)
	$(GO) test -tags integration -count=1 -timeout 30m -v $(TESTFLAGS) $(if $(RUN),-run '$(RUN)') ./integration/kubelet

.PHONY: images
images: deps
	@$(GO) run ./integration/cmd/testimages make

.PHONY: tools
tools: crictl critest-binary cni-plugins kubectl

# Compiled from the pinned modules of integration/tools; the build cache makes this short the second time.
.PHONY: crictl critest-binary cni-plugins kubelet kubectl staticcheck
crictl:
	@mkdir -p bin/tools
	@$(TOOLS) build -trimpath -buildvcs=false -ldflags '-s -w -X $(CRI_TOOLS)/pkg/version.Version=1.36.0' -o ../../bin/tools/crictl $(CRI_TOOLS)/cmd/crictl
critest-binary:
	@mkdir -p bin/tools
	@$(TOOLS) test -c -trimpath -ldflags '-s -w -X $(CRI_TOOLS)/pkg/version.Version=1.36.0' -o ../../bin/tools/critest $(CRI_TOOLS)/cmd/critest
cni-plugins:
	@mkdir -p bin/tools/cni
	@$(TOOLS) build -trimpath -buildvcs=false -ldflags '-s -w' -o ../../bin/tools/cni/ \
		$(foreach p,bridge loopback,github.com/containernetworking/plugins/plugins/main/$(p)) \
		$(foreach p,portmap bandwidth firewall tuning,github.com/containernetworking/plugins/plugins/meta/$(p)) \
		github.com/containernetworking/plugins/plugins/ipam/host-local
kubelet:
	@mkdir -p bin/tools
	cd integration/tools/kubelet && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false \
		-ldflags '-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3' -o ../../../bin/tools/kubelet k8s.io/kubernetes/cmd/kubelet
kubectl:
	@mkdir -p bin/tools
	@cd integration/tools/kubelet && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false \
		-ldflags '-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3' -o ../../../bin/tools/kubectl k8s.io/kubernetes/cmd/kubectl
staticcheck:
	@mkdir -p bin/tools
	@$(TOOLS) build -trimpath -buildvcs=false -o ../../bin/tools/staticcheck honnef.co/go/tools/cmd/staticcheck

##@ Look after

.PHONY: lint
lint: deps staticcheck pause-check enter-check hold-check ## Check the format, go vet, staticcheck, and the embedded programs
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [[ -z $$unformatted ]] || { printf 'not formatted by gofmt:\n%s\n' "$$unformatted"; exit 1; }
	$(GO) vet -tags 'seccomp integration' ./...
	$(GO) vet -tags failpoints ./internal/failpoint
	bin/tools/staticcheck -tags 'seccomp integration' ./...
	bin/tools/staticcheck -tags failpoints ./internal/failpoint

.PHONY: clean
clean: ## Remove what was built, and the caches below out/
	rm -rf bin out
