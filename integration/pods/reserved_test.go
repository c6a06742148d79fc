//go:build integration

package pods

import (
	"fmt"
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// What is reserved is shown as not allocatable, and no pod gets it.
func TestReserved(t *testing.T) {
	n := start(t, "  kubeReserved: {cpu: 100m, memory: 64Mi}\n  systemReserved: {cpu: 300m, ephemeral-storage: 1Gi}\n"+
		"  evictionHard: {memory.available: 32Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}\n")
	amounts := func(what string) (cpu, memory, storage resource.Quantity) {
		out := n.berth().ok(t, "get", "node", "self", "-o", fmt.Sprintf("jsonpath={.status.%[1]s.cpu} {.status.%[1]s.memory} {.status.%[1]s.ephemeral-storage}", what))
		fields := strings.Fields(out)
		if len(fields) != 3 {
			t.Fatalf("%s: %q", what, out)
		}
		return resource.MustParse(fields[0]), resource.MustParse(fields[1]), resource.MustParse(fields[2])
	}
	cpu, memory, storage := amounts("capacity")
	less := func(q *resource.Quantity, by string) { q.Sub(resource.MustParse(by)) }
	less(&cpu, "400m")
	less(&memory, "96Mi")
	less(&storage, "1Gi")
	gotCPU, gotMemory, gotStorage := amounts("allocatable")
	if !gotCPU.Equal(cpu) || !gotMemory.Equal(memory) || !gotStorage.Equal(storage) {
		t.Errorf("allocatable: %s %s %s, want %s %s %s", &gotCPU, &gotMemory, &gotStorage, &cpu, &memory, &storage)
	}
	n.write("large.yaml", spec("large", "", fmt.Sprintf("    resources: {requests: {cpu: %dm}}\n", cpu.MilliValue()+1)))
	large := n.awaitPhase("large", v1.PodFailed)
	if want := fmt.Sprintf("requested: %d, used: 0, capacity: %d", cpu.MilliValue()+1, cpu.MilliValue()); large.Status.Reason != "OutOfcpu" || !strings.Contains(large.Status.Message, want) {
		t.Errorf("%s: %s, want %s", large.Status.Reason, large.Status.Message, want)
	}
	n.write("fits.yaml", spec("fits", "", fmt.Sprintf("    resources: {requests: {cpu: %dm}}\n", cpu.MilliValue())))
	n.awaitReady("fits")
}

// A reservation that makes no sense keeps the daemon from starting, and is named.
func TestReservedTooMuch(t *testing.T) {
	n := start(t)
	file := t.TempDir() + "/config.yaml"
	for text, want := range map[string]string{
		"kubelet: {kubeReserved: {disk: 1Gi}}\n":   "kubelet.kubeReserved: disk: there is no such resource to reserve",
		"kubelet: {systemReserved: {cpu: some}}\n": "kubelet.systemReserved: cpu: want an amount",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, errOut, code := (tool{name: "berth", path: n.berth().path}).run(t, "", "config", "check", file); code == 0 || !strings.Contains(errOut, want) {
			t.Errorf("%s: %d, %s", text, code, errOut)
		}
	}
}
