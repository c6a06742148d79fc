package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

func testSandbox(id, name string) *sandbox {
	return &sandbox{
		record: sandboxRecord{ID: id}, op: newOpLock(),
		config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "u-" + name}},
	}
}

func testContainer(id, sandbox, name string) *container {
	c := newContainer("")
	c.record = containerRecord{ID: id, SandboxID: sandbox, CreatedAt: time.Unix(int64(len(id)), 0)}
	c.config = &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: name}}
	return c
}

func TestFindByPrefix(t *testing.T) {
	x := newIndex()
	x.addSandbox(testSandbox("abc1", "a"))
	x.addSandbox(testSandbox("abd2", "b"))
	x.addSandbox(testSandbox("ab", "c")) // an ID that is the prefix of others is still itself
	for id, want := range map[string]error{
		"abc1": nil, "abc": nil, "ab": nil, "abd": nil,
		"a": errdefs.ErrInvalidArgument, "x": errdefs.ErrNotFound, "": errdefs.ErrInvalidArgument, "abc12": errdefs.ErrNotFound,
	} {
		sb, err := x.findSandbox(id)
		if !errors.Is(err, want) {
			t.Errorf("find %q: %v, want %v", id, err, want)
		}
		if want == nil && (sb == nil || sb.record.ID[:len(id)] != id) {
			t.Errorf("find %q: %+v", id, sb)
		}
	}
}

func TestKeysAreFreedWithTheirOwner(t *testing.T) {
	x := newIndex()
	first, second := testSandbox("1", "web"), testSandbox("2", "web")
	key := sandboxKey(first.config.Metadata)
	x.addSandbox(first)
	x.addSandbox(second)
	x.dropSandbox(first) // it does not own the key any more
	if got := x.sandboxByKey(key); got != second {
		t.Errorf("key leads to %v", got)
	}
	x.dropSandbox(second)
	if got := x.sandboxByKey(key); got != nil {
		t.Errorf("key leads to %v after all are gone", got)
	}
}

func TestKeysTellAttemptsApart(t *testing.T) {
	m := &cri.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}
	again := &cri.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c", Attempt: 1}
	shifted := &cri.PodSandboxMetadata{Name: "a\" \"b", Namespace: "", Uid: "c"}
	if sandboxKey(m) == sandboxKey(again) || sandboxKey(m) == sandboxKey(shifted) {
		t.Error("different attempts have one key")
	}
	if sandboxKey(m) != sandboxKey(&cri.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}) {
		t.Error("the same attempt has two keys")
	}
}

func TestMembersOldestFirst(t *testing.T) {
	x := newIndex()
	x.addContainer(testContainer("ccc", "s", "third"))
	x.addContainer(testContainer("a", "s", "first"))
	x.addContainer(testContainer("bb", "s", "second"))
	x.addContainer(testContainer("z", "other", "first"))
	var order string
	for _, c := range x.containersOf("s") {
		order += c.config.Metadata.Name + " "
	}
	if order != "first second third " {
		t.Errorf("order: %s", order)
	}
	x.dropContainer(x.container("bb"))
	if n := len(x.containersOf("s")); n != 2 {
		t.Errorf("%d members after one was dropped", n)
	}
}

func TestContainersInTheMakingAreNotListed(t *testing.T) {
	x := newIndex()
	c := testContainer("a", "s", "c")
	x.addMaking(c)
	if len(x.allContainers()) != 0 || x.container("a") != nil {
		t.Error("a container in the making is visible")
	}
	if x.anyContainer("a") != c {
		t.Error("its exit would not find it")
	}
	x.dropMaking(c)
	if x.anyContainer("a") != nil {
		t.Error("it is still being made")
	}
}

func TestJoin(t *testing.T) {
	r := newTestRuntime(t)
	proceed := make(chan struct{})
	runs := 0
	work := func() (string, error) {
		runs++
		<-proceed
		return "id", nil
	}
	impatient, cancel := context.WithCancel(t.Context())
	results := make(chan error, 2)
	go func() {
		_, err := join(impatient, r, "key", work)
		results <- err
	}()
	cancel()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("the impatient caller got %v", err)
	}
	// Its work goes on, and the next caller joins it.
	go func() {
		id, err := join(t.Context(), r, "key", work)
		if id != "id" && err == nil {
			err = errors.New("wrong result " + id)
		}
		results <- err
	}()
	close(proceed)
	if err := <-results; err != nil {
		t.Error(err)
	}
	if runs > 2 || runs == 0 {
		t.Errorf("the work ran %d times", runs)
	}
}

// listed are a thousand containers as a kubelet makes them, with all that is on record of them.
func listed(t testing.TB) *Runtime {
	r := &Runtime{index: newIndex()}
	resources := &cri.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: 50_000, CpuShares: 512, MemoryLimitInBytes: 1 << 28, OomScoreAdj: 900}
	user := &cri.ContainerUser{Linux: &cri.LinuxContainerUser{Uid: 1000, Gid: 1000, SupplementalGroups: []int64{1000}}}
	mounts := []proto.Message{resources, user}
	for i := range 6 {
		mounts = append(mounts, &cri.Mount{ContainerPath: fmt.Sprint("/var/mount/", i), HostPath: fmt.Sprint("/var/lib/kubelet/pods/volumes/", i), Readonly: true})
	}
	var data []json.RawMessage
	for _, m := range mounts {
		d, err := marshalProto(m)
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, d)
	}
	for i := range 1000 {
		c := testContainer(fmt.Sprint("c", i), fmt.Sprint("s", i/2), fmt.Sprint("app-", i%2))
		c.facts.Resources, c.facts.User, c.facts.Mounts = data[0], data[1], data[2:]
		r.index.addContainer(c)
		if i%2 == 0 {
			r.index.addSandbox(testSandbox(c.record.SandboxID, fmt.Sprint("pod-", i)))
		}
	}
	return r
}

func TestListsAreWithoutDetails(t *testing.T) {
	r := listed(t)
	all := r.Containers(ContainerFilter{})
	if len(all) != 1000 || all[0].Mounts != nil || all[0].Resources != nil || all[0].User != nil {
		t.Errorf("%d containers, the first with %+v", len(all), all[0])
	}
	one, err := r.Container(t.Context(), "c7")
	if err != nil || len(one.Mounts) != 6 || one.Resources.GetLinux().GetCpuQuota() != 50_000 || one.User.GetLinux().GetUid() != 1000 {
		t.Errorf("one container: %+v, %v", one, err)
	}
	// What a status or an event tells of a sandbox's containers is what a container's status tells.
	if two := r.SandboxContainers("s3"); len(two) != 2 || len(two[0].Mounts) != 6 || len(two[1].Mounts) != 6 {
		t.Errorf("a sandbox's containers: %+v", two)
	}
}

func BenchmarkContainers(b *testing.B) {
	r := listed(b)
	for b.Loop() {
		if n := len(r.Containers(ContainerFilter{})); n != 1000 {
			b.Fatal(n)
		}
	}
}
