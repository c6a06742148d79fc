package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// execTrue runs a program that does nothing in a container, as a probe would.
func execTrue(ctx context.Context, p *pod) error {
	resp, err := p.on.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.containers[0], Cmd: []string{"true"}, Timeout: 10})
	if err == nil && resp.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", resp.ExitCode, resp.Stderr)
	}
	if err != nil {
		return fmt.Errorf("%s: ExecSync: %w", p.on.name, err)
	}
	return nil
}

// onOnePodEach calls f with a running pod of each target.
func (b *bench) onOnePodEach(ctx context.Context, f func(pods map[*target]*pod) error) (err error) {
	pods := map[*target]*pod{}
	for _, t := range b.targets {
		list, remove, err := b.up(ctx, t, 1, shape{})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, remove()) }()
		pods[t] = list[0]
	}
	return f(pods)
}

func (b *bench) caseExec(ctx context.Context) error {
	return b.onOnePodEach(ctx, func(pods map[*target]*pod) error {
		tab := &table{Name: "exec", What: "ExecSync of true", Unit: "ms"}
		err := b.byTurns(5*b.n, func(t *target) error {
			began := time.Now()
			err := execTrue(ctx, pods[t])
			tab.add(t.name, ms(time.Since(began)))
			return err
		})
		if err == nil {
			b.publish(tab)
		}
		return err
	})
}

// caseExecLoad has each target do 100 execs a second, a few at once where one takes longer than 10 ms.
func (b *bench) caseExecLoad(ctx context.Context) error {
	const perSecond, seconds = 100, 4
	return b.onOnePodEach(ctx, func(pods map[*target]*pod) error {
		cpu := &table{Name: "execload", What: "CPU of 100 ExecSync a second, that of true included", Unit: "% of a core"}
		took := &table{Name: "execload-latency", What: "ExecSync at 100 a second", Unit: "ms"}
		err := b.byTurns(2, func(t *target) error {
			before, ok := t.cpuTime()
			if !ok {
				return nil
			}
			began := time.Now()
			times, err := atRate(perSecond, seconds*perSecond, 8, func() error { return execTrue(ctx, pods[t]) })
			wall := time.Since(began)
			if err != nil {
				return err
			}
			after, _ := t.cpuTime()
			for _, d := range times {
				took.add(t.name, ms(d))
			}
			cpu.add(t.name, 100*(after-before).Seconds()/(seconds*perSecond)*perSecond)
			if wall > (seconds+1)*time.Second {
				cpu.note("%s reached %.0f a second only; its CPU time is per 100 of them", t.name, seconds*perSecond/wall.Seconds())
			}
			return nil
		})
		if err == nil {
			b.publish(cpu)
			b.publish(took)
		}
		return err
	})
}

// atRate calls f n times, perSecond times a second but never more than limit at once, and returns how long each took.
func atRate(perSecond, n, limit int, f func() error) ([]time.Duration, error) {
	type done struct {
		took time.Duration
		err  error
	}
	results, slots := make(chan done, n), make(chan struct{}, limit)
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for range n {
		<-tick.C
		slots <- struct{}{}
		go func() {
			began := time.Now()
			err := f()
			results <- done{time.Since(began), err}
			<-slots
		}()
	}
	var times []time.Duration
	var errs []error
	for range n {
		d := <-results
		times = append(times, d.took)
		errs = append(errs, d.err)
	}
	return times, errors.Join(errs...)
}
