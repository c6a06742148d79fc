package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const settle = 2 * time.Second // garbage is collected, and what was started ahead has started

// caseMemory measures what runtimes take, before and with further pods that do nothing.
func (b *bench) caseMemory(ctx context.Context) error {
	rest := &table{Name: "memory-rest", What: "proportional memory of all processes, without pods", Unit: "MiB"}
	each := &table{Name: "memory-pod", What: "proportional memory per further pod of one container, workload excluded", Unit: "KiB"}
	for _, t := range b.targets {
		if err := b.memoryOfPods(ctx, t, rest, each); err != nil {
			return err
		}
	}
	b.publish(rest)
	b.publish(each)
	return nil
}

func (b *bench) memoryOfPods(ctx context.Context, t *target, rest, each *table) (err error) {
	pods := 4 * b.n
	if t.isBerth() {
		pods *= 3 // a small growth needs more to be seen
	}
	if _, _, err := b.run(ctx, t, shape{}); err != nil { // what the first pod brings for good is no pod's
		return err
	}
	time.Sleep(settle)
	before, detail, ok := t.memory()
	if !ok {
		return nil
	}
	rest.add(t.name, float64(before.PSS)/(1<<20))
	rest.note("%s: %s", t.name, describe(detail))
	_, remove, err := b.up(ctx, t, pods, shape{})
	if err != nil {
		return err
	}
	time.Sleep(settle)
	after, detail, _ := t.memory()
	each.add(t.name, float64(after.PSS-before.PSS)/float64(pods)/(1<<10))
	each.note("%s with %d pods: %s", t.name, pods, describe(detail))
	return remove()
}

// describe says which program takes what.
func describe(detail map[string]memory) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(detail)) {
		m := detail[name]
		parts = append(parts, fmt.Sprintf("%s %.1f MiB (RSS %.1f)", name, float64(m.PSS)/(1<<20), float64(m.RSS)/(1<<20)))
	}
	return strings.Join(parts, ", ")
}
