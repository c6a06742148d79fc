package probe

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/probe"
)

// Reasons of events, upstream's pkg/kubelet/events.
const (
	reasonUnhealthy = "Unhealthy"
	reasonWarning   = "ProbeWarning"
)

// maxRetries is how often a probe is tried that could not be carried out.
const maxRetries = 3

// A worker runs one probe of one container again and again.
type worker struct {
	manager   *Manager
	container *container
	kind      Kind
	spec      *v1.Probe
	period    time.Duration

	last probe.Result // the last word, success or failure
	run  int32        // how often in a row that was the last word
}

// loop runs until ctx ends or nothing is left to ask.
func (w *worker) loop(ctx context.Context, first time.Time) {
	early := w.kind == Startup && w.spec.InitialDelaySeconds == 0 && !w.container.seeded
	timer := time.NewTimer(time.Until(first))
	defer timer.Stop()
	for due := first; ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		result, ok := w.ask(ctx)
		if ctx.Err() != nil {
			return // the container is gone, or stops: this was about something else
		}
		if ok && !(early && result == probe.Failure) && w.count(result) {
			return
		}
		early = false
		// What took longer than a period is followed at once, and by no more than one.
		if due = due.Add(w.period); due.Before(time.Now()) {
			due = time.Now()
		}
		timer.Reset(time.Until(due))
	}
}

// ask runs the probe and reports. It is not ok if the probe itself could not be carried out, which counts neither way.
func (w *worker) ask(ctx context.Context) (result probe.Result, ok bool) {
	began := time.Now()
	var output string
	var err error
	for range maxRetries {
		if result, output, err = w.manager.run.probe(ctx, w.spec, w.container.Target); err == nil || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return result, false
	}
	if err != nil {
		w.event(reasonUnhealthy, fmt.Sprintf("%s probe errored and resulted in %s state: %s", w.kind, result, err))
		return result, false
	}
	switch result {
	case probe.Warning:
		w.event(reasonWarning, fmt.Sprintf("%s probe warning: %s", w.kind, output))
		result = probe.Success
	case probe.Failure:
		w.event(reasonUnhealthy, fmt.Sprintf("%s probe failed: %s", w.kind, output))
	}
	w.manager.metrics.count(w, result, time.Since(began))
	return result, true
}

func (w *worker) event(reason, message string) {
	w.manager.cfg.Log.Debug("probe", "pod", w.container.Pod.Name, "container", w.container.Container.Name, "what", message)
	w.manager.cfg.Event(w.container.Pod, w.container.Container, v1.EventTypeWarning, reason, message)
}

// count takes a result in, and returns whether this worker is done.
func (w *worker) count(result probe.Result) (done bool) {
	if result == w.last {
		w.run++
	} else {
		w.last, w.run = result, 1
	}
	threshold := w.spec.FailureThreshold
	if result == probe.Success {
		threshold = w.spec.SuccessThreshold
	}
	if w.run < threshold {
		return false
	}
	return w.manager.settle(w.container, w.kind, result == probe.Success)
}

// settle enters a result that has come often enough, and returns whether the probe has nothing more to say.
func (m *Manager) settle(c *container, kind Kind, success bool) (done bool) {
	m.mu.Lock()
	if c.workers[kind] == nil {
		m.mu.Unlock()
		return true // stopped meanwhile
	}
	before := c.result
	switch {
	case kind == Readiness:
		c.result.Ready = success
	case !success:
		c.result.Failed, done = kind, true
		// Nothing runs in a container that is being stopped: kubernetes/kubernetes#21751.
		c.stop(Startup, Liveness)
	case kind == Startup:
		c.stop(Startup)
		m.started(c, false)
		done = true
	}
	changed := c.result != before
	m.mu.Unlock()
	if changed {
		m.cfg.Changed(c.Pod.UID)
	}
	return done
}
