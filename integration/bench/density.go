package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// caseDensity fills one target after the other with pods of two containers, and measures what they cost and slow down.
func (b *bench) caseDensity(ctx context.Context) error {
	d := &density{bench: b}
	d.tables()
	for _, t := range b.targets {
		if t.name != "berth" && !b.allPeers {
			continue
		}
		if err := d.of(ctx, t); err != nil {
			return err
		}
	}
	for _, t := range d.all {
		b.publish(t)
	}
	return nil
}

type density struct {
	*bench
	all                                                 []*table
	first, next, each, idleCPU, threads                 *table
	sandboxes, containers, sandboxStats, containerStats *table
}

func (d *density) tables() {
	full := fmt.Sprintf("with %d pods of two containers", d.density)
	add := func(name, what, unit string) *table {
		t := &table{Name: "density-" + name, What: what, Unit: unit}
		d.all = append(d.all, t)
		return t
	}
	d.first = add("first", "start of a pod of one container on an empty node", "ms")
	d.next = add("next", "the same "+full, "ms")
	d.each = add("memory", "proportional memory per further pod, workload excluded, "+full, "KiB")
	d.idleCPU = add("idle", "CPU of the runtime while nothing happens, "+full, "% of a core")
	d.threads = add("threads", "threads of the runtime (in the notes: without pods), "+full, "")
	d.sandboxes = add("list-pods", "ListPodSandbox "+full, "ms")
	d.containers = add("list-containers", "ListContainers "+full, "ms")
	d.containerStats = add("stats-containers", "ListContainerStats "+full, "ms")
	d.sandboxStats = add("stats-pods", "ListPodSandboxStats "+full, "ms")
}

func (d *density) of(ctx context.Context, t *target) (err error) {
	if err := d.starts(ctx, t, d.first); err != nil {
		return err
	}
	time.Sleep(settle)
	before, _, measured := t.memory()
	threadsBefore, _ := t.threads()
	_, remove, err := d.up(ctx, t, d.density, shape{containers: 2})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	time.Sleep(settle)
	if measured {
		after, detail, _ := t.memory()
		d.each.add(t.name, float64(after.PSS-before.PSS)/float64(d.density)/(1<<10))
		d.each.note("%s: %s", t.name, describe(detail))
		threads, _ := t.threads()
		d.threads.add(t.name, float64(threads))
		d.threads.note("%s: %d", t.name, threadsBefore)
		if err := d.watch(ctx, t); err != nil {
			return err
		}
	}
	if err := d.starts(ctx, t, d.next); err != nil {
		return err
	}
	return d.lists(ctx, t)
}

// starts measures pods one after the other, as in the start case.
func (d *density) starts(ctx context.Context, t *target, tab *table) error {
	for i := range d.n + 1 {
		up, _, err := d.run(ctx, t, shape{})
		if err != nil {
			return err
		}
		if i > 0 {
			tab.add(t.name, ms(up))
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// watch measures what an idle runtime uses: its own processes, without the pods' cgroups, in which workloads are.
func (d *density) watch(ctx context.Context, t *target) error {
	root, err := accounting()
	if err != nil {
		return err
	}
	before, _ := cpuUsage(filepath.Join(root, t.own))
	began := time.Now()
	select {
	case <-time.After(d.idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, _ := cpuUsage(filepath.Join(root, t.own))
	d.idleCPU.add(t.name, 100*(after-before).Seconds()/time.Since(began).Seconds())
	return nil
}

func (d *density) lists(ctx context.Context, t *target) error {
	const bare = "bare reader" // of the same cgroup files, with nothing around it
	calls := []struct {
		tab  *table
		who  string
		call func() (int, error)
	}{
		{d.sandboxes, t.name, func() (int, error) {
			r, err := t.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			return len(r.GetItems()), err
		}},
		{d.containers, t.name, func() (int, error) {
			r, err := t.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
			return len(r.GetContainers()) / 2, err
		}},
		{d.containerStats, t.name, func() (int, error) {
			r, err := t.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
			return len(r.GetStats()) / 2, err
		}},
		{d.sandboxStats, t.name, func() (int, error) {
			r, err := t.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			return len(r.GetStats()), err
		}},
		{d.containerStats, bare, func() (int, error) { return d.density, readStats(t.pods, false) }},
		{d.sandboxStats, bare, func() (int, error) { return d.density, readStats(t.pods, true) }},
	}
	for i := range d.n + 1 {
		for _, c := range calls {
			runtime.GC()
			began := time.Now()
			n, err := c.call()
			took := time.Since(began)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", t.name, c.tab.Name, err)
			}
			if n < d.density {
				return fmt.Errorf("%s: %s shows %d pods of %d", t.name, c.tab.Name, n, d.density)
			}
			if i > 0 {
				c.tab.add(c.who, ms(took))
			}
		}
	}
	return nil
}
