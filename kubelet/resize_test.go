package kubelet

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/kubelet/feed"
	"github.com/berth-node/berth/kubelet/plan"
	"github.com/berth-node/berth/kubelet/resource"
)

// Who waits for resources gets them in upstream's order, and what is given counts at once.
func TestBids(t *testing.T) {
	left := 0 // thousandths of a CPU
	var asked []string
	k := &Kubelet{
		log: slog.New(slog.DiscardHandler), pods: feed.New[*v1.Pod](1, 16), bids: map[types.UID]*bid{}, deferred: map[*worker]bool{},
		uids: map[types.UID]*worker{}, refused: map[*worker]bool{},
	}
	now := time.Unix(1000, 0)
	k.cfg.Now = func() time.Time { now = now.Add(time.Second); return now }
	sum := func(pods ...*v1.Pod) (sum int) {
		for _, p := range pods {
			sum += int(p.Spec.Containers[0].Resources.Requests.Cpu().MilliValue())
		}
		return sum
	}
	k.cfg.Resize = func(have, want *v1.Pod, others []*v1.Pod) *Refusal {
		asked = append(asked, want.Name)
		if resource.Grows(have, want) && sum(append(others, want)...) > left {
			return &Refusal{"OutOfcpu", fmt.Sprint(sum(others...))}
		}
		return nil
	}
	named := func(name string, priority int32, cpu string) *v1.Pod {
		p := podOf(t, "containers: [{name: a, resources: {requests: {cpu: "+cpu+"}}}]")
		p.Name, p.UID, p.Spec.Priority = name, types.UID(name), &priority
		return p
	}
	workers := map[string]*worker{}
	bid := func(name string, priority int32, cpu string) bool {
		if workers[name] == nil {
			workers[name] = &worker{k: k, wake: make(chan struct{}, 1)}
		}
		shown := named(name, priority, cpu)
		refused := k.bid(workers[name], named(name, priority, "100m"), shown) != nil
		k.pods.Put(shown)
		return !refused
	}
	left = 100
	if bid("old", 0, "300m") || bid("young", 0, "300m") || bid("first", 5, "300m") {
		t.Fatal("there is room where there is none")
	}
	// Pods count with what they have, not with what they wish for.
	if got := sum(k.others("")...); got != 300 {
		t.Errorf("they count as %dm", got)
	}
	asked, left = nil, 500
	if bid("less", 0, "50m") != true {
		t.Error("who wants less has to wait")
	}
	if got := strings.Join(asked, " "); got != "less first old young" {
		t.Errorf("asked: %s", got)
	}
	select {
	case <-workers["first"].wake:
	default:
		t.Error("who was given something is not told")
	}
	if got := sum(k.others("")...); got != 50+300+100+100 {
		t.Errorf("they count as %dm", got)
	}
	// Who is ending takes nothing any more, and counts with what it has.
	ending := &incarnation{pod: named("old", 0, "100m")}
	ending.memory.End = &plan.End{}
	k.endBid(ending)
	asked, left = nil, 1000
	k.grant(nil)
	if !slices.Equal(asked, []string{"young"}) || sum(k.others("")...) != 50+300+100+300 {
		t.Errorf("asked %q, they count as %dm", asked, sum(k.others("")...))
	}
	// Who has been given something and wishes it no more, before it took it, counts with what it has.
	k.endBid(&incarnation{pod: named("young", 0, "100m")})
	if got := sum(k.others("")...); got != 50+300+100+100 {
		t.Errorf("they count as %dm", got)
	}
}
