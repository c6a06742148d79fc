package main

import (
	"context"
	"fmt"
	"time"
)

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// byTurns calls f n times for each target. Each round begins with another one, so that none always comes after the same.
func (b *bench) byTurns(n int, f func(t *target) error) error {
	for i := range n {
		for j := range b.targets {
			if err := f(b.targets[(i+j)%len(b.targets)]); err != nil {
				return err
			}
		}
	}
	return nil
}

// startAndStop measures pods of one shape, one at a time. rest is how long each runtime has had nothing to do before.
func (b *bench) startAndStop(ctx context.Context, name, what string, s shape, rest time.Duration) error {
	start := &table{Name: name, What: "start of a pod, " + what, Unit: "ms"}
	stop := &table{Name: name + "-stop", What: "stop and removal of a pod, " + what, Unit: "ms"}
	for _, t := range b.targets { // in the order of the targets, and once before it counts
		if _, _, err := b.run(ctx, t, s); err != nil {
			return err
		}
		start.Series = append(start.Series, series{Target: t.name})
		stop.Series = append(stop.Series, series{Target: t.name})
	}
	err := b.byTurns(b.n, func(t *target) error {
		if b.floor != nil && t == b.targets[0] && !s.hostNetwork {
			time.Sleep(rest)
			took, err := b.floor.start(ctx)
			if err != nil {
				return err
			}
			start.add("floor", took)
		}
		time.Sleep(rest)
		up, down, err := b.run(ctx, t, s)
		if err == nil {
			start.add(t.name, ms(up))
			stop.add(t.name, ms(down))
		}
		return err
	})
	if err != nil {
		return err
	}
	b.publish(start)
	b.publish(stop)
	return nil
}

func (b *bench) caseStart(ctx context.Context) error {
	return b.startAndStop(ctx, "start", "one after the other", shape{}, 20*time.Millisecond)
}

func (b *bench) caseRested(ctx context.Context) error {
	return b.startAndStop(ctx, "rested", "after a second of rest", shape{}, time.Second)
}

func (b *bench) caseSmall(ctx context.Context) error {
	return b.startAndStop(ctx, "small", "with 100 thousandths of a CPU", shape{milliCPU: 100}, 20*time.Millisecond)
}

// caseHostNetwork is about the stop: nobody runs CNI plugins, whose own time is not the runtime's.
func (b *bench) caseHostNetwork(ctx context.Context) error {
	return b.startAndStop(ctx, "hostnet", "in the network of the host", shape{hostNetwork: true}, 20*time.Millisecond)
}

func (b *bench) caseParallel(ctx context.Context) error {
	for _, width := range []int{8, 16} {
		tab := &table{Name: fmt.Sprintf("parallel-%d", width), What: fmt.Sprintf("pods started per second, %d at once", width), Unit: "pods/s", More: true}
		cpu := &table{Name: fmt.Sprintf("parallel-%d-cpu", width), What: fmt.Sprintf("CPU time of a start, %d at once", width), Unit: "ms"}
		err := b.byTurns(max(b.n/4, 2), func(t *target) error {
			rate, used, err := b.rate(ctx, t, width, 2*width)
			if err == nil {
				tab.add(t.name, rate)
			}
			if used > 0 {
				cpu.add(t.name, ms(used))
			}
			return err
		})
		if err != nil {
			return err
		}
		b.publish(tab)
		b.publish(cpu)
	}
	return nil
}

// rate starts n pods, as many at once as width says, and returns how many came up per second, and the CPU time of each
// where it can be told. What the target does ahead of the next starts is of that time.
func (b *bench) rate(ctx context.Context, t *target, width, n int) (perSecond float64, each time.Duration, err error) {
	var pods []*pod
	for range n {
		p, err := b.newPod(t, shape{})
		if err != nil {
			return 0, 0, err
		}
		pods = append(pods, p)
	}
	before, told := t.cpuTime()
	began := time.Now()
	err = inParallel(pods, width, func(p *pod) error { return b.start(ctx, p, shape{}) })
	took := time.Since(began)
	if after, ok := t.cpuTime(); ok && told {
		each = (after - before) / time.Duration(n)
	}
	for _, p := range pods {
		if p.id != "" {
			if serr := b.stop(ctx, p); err == nil {
				err = serr
			}
		}
		if cerr := p.cleanUp(); err == nil {
			err = cerr
		}
	}
	return float64(n) / took.Seconds(), each, err
}
