package runtime

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/berth-node/berth/network"
)

// brokenNetwork remembers what it was told to restore, and fails.
type brokenNetwork struct {
	network.Attacher
	restored []string
}

func (n *brokenNetwork) Restore(_ context.Context, live []network.Request) error {
	for _, req := range live {
		n.restored = append(n.restored, req.SandboxID)
	}
	return errors.New("broken")
}

// A daemon killed in the middle of a stop has dropped a namespace and not yet said so. The next one must start.
func TestRestoredNetworkIsThatOfNamespacesThatAreThere(t *testing.T) {
	r, said := newKeeperless(t)
	net := &brokenNetwork{}
	r.cfg.Network = net
	now := time.Now()
	for id, f := range map[string]sandboxFacts{
		"ready":      {ReadyAt: now, Anchors: anchors{NetNS: "/proc/self/ns/net"}},
		"stopping":   {ReadyAt: now, StoppedAt: now, Anchors: anchors{NetNS: "/proc/self/ns/net"}},
		"dropped":    {ReadyAt: now, StoppedAt: now, Anchors: anchors{NetNS: "/proc/self/none"}},
		"torn down":  {ReadyAt: now, StoppedAt: now, TornDown: true, Anchors: anchors{NetNS: "/proc/self/ns/net"}},
		"on host":    {ReadyAt: now},
		"incomplete": {Anchors: anchors{NetNS: "/proc/self/ns/net"}},
	} {
		sb := testSandbox(id, id)
		sb.facts = f
		r.index.addSandbox(sb)
	}
	r.restoreNetwork(t.Context())
	slices.Sort(net.restored)
	if !slices.Equal(net.restored, []string{"ready", "stopping"}) {
		t.Errorf("restored: %q", net.restored)
	}
	if len(said.when("not everything of the network could be restored")) != 1 {
		t.Error("the failure was not said")
	}
}
