package runtime

import (
	"context"
	"errors"
	"testing"
	"time"

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
