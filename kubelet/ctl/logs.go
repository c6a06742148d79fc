package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// LogOptions are those of "berth logs".
type LogOptions struct {
	Namespace, Container, Labels string
	AllContainers                bool
	Follow, Previous, Timestamps bool
	Prefix, IgnoreErrors         bool
	Since                        time.Duration
	SinceTime                    string
	Tail, LimitBytes             int64 // negative and 0: all
	MaxRequests                  int   // logs that are followed at once
	Out, Err                     io.Writer
}

func (o *LogOptions) query(container string) url.Values {
	q := url.Values{"container": {container}}
	for key, v := range map[string]bool{"follow": o.Follow, "previous": o.Previous, "timestamps": o.Timestamps} {
		if v {
			q.Set(key, "true")
		}
	}
	if o.Since > 0 {
		// What is less than a second rounds up: nothing that is asked for is missing.
		q.Set("sinceSeconds", strconv.FormatInt(int64((o.Since+time.Second-1)/time.Second), 10))
	}
	if o.SinceTime != "" {
		q.Set("sinceTime", o.SinceTime)
	}
	if o.Tail >= 0 {
		q.Set("tailLines", strconv.FormatInt(o.Tail, 10))
	}
	if o.LimitBytes > 0 {
		q.Set("limitBytes", strconv.FormatInt(o.LimitBytes, 10))
	}
	return q
}

// A log is one container's.
type log struct{ pod, container string }

// Logs prints the logs of a pod, or of those that fit the selector.
func (c *Client) Logs(ctx context.Context, name string, o LogOptions) error {
	var logs []log
	if o.Labels != "" {
		var list v1.PodList
		scope := Scope{Namespace: o.Namespace, Labels: o.Labels}
		if err := c.get(ctx, call{path: "/api/v1/namespaces/" + url.PathEscape(o.Namespace) + "/pods", query: scope.query()}, &list); err != nil {
			return err
		}
		if len(list.Items) == 0 {
			fmt.Fprintf(o.Err, "No resources found in %s namespace.\n", o.Namespace)
		}
		for i := range list.Items {
			logs = append(logs, o.of(&list.Items[i])...)
		}
	} else {
		pod, err := c.pod(ctx, o.Namespace, name)
		if err != nil {
			return err
		}
		logs = o.of(pod)
	}
	if !o.Follow || len(logs) < 2 {
		for _, l := range logs {
			if err := c.log(ctx, l, o, o.Out); err != nil {
				if !o.IgnoreErrors {
					return err
				}
				fmt.Fprintln(o.Err, Message(err))
			}
		}
		return nil
	}
	if len(logs) > o.MaxRequests {
		return fmt.Errorf("you are attempting to follow %d log streams, but maximum allowed concurrency is %d, use --max-log-requests to increase the limit", len(logs), o.MaxRequests)
	}
	return c.followAll(ctx, logs, o)
}

// followAll follows several logs at once, whole lines of each.
func (c *Client) followAll(ctx context.Context, logs []log, o LogOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &lines{to: o.Out}
	failed := make([]error, len(logs))
	var all sync.WaitGroup
	for i, l := range logs {
		all.Go(func() {
			if failed[i] = c.log(ctx, l, o, out); failed[i] != nil && !o.IgnoreErrors {
				cancel()
			}
		})
	}
	all.Wait()
	for _, err := range failed {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return nil
}

// of are the logs of a pod that are asked for.
func (o *LogOptions) of(pod *v1.Pod) (all []log) {
	switch {
	case o.AllContainers:
		for _, c := range allContainers(pod) {
			all = append(all, log{pod.Name, c.Name})
		}
	case o.Container != "":
		all = []log{{pod.Name, o.Container}}
	default:
		name, guessed := meantContainer(pod)
		if guessed {
			fmt.Fprintf(o.Err, "Defaulted container %q out of: %s\n", name, containerNames(pod))
		}
		all = []log{{pod.Name, name}}
	}
	return all
}

func (c *Client) log(ctx context.Context, l log, o LogOptions, out io.Writer) error {
	path := "/api/v1/namespaces/" + url.PathEscape(o.Namespace) + "/pods/" + url.PathEscape(l.pod) + "/log"
	resp, err := c.do(ctx, call{path: path, query: o.query(l.container)})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	prefix := ""
	if o.Prefix {
		prefix = fmt.Sprintf("[pod/%s/%s] ", l.pod, l.container)
	}
	for in := bufio.NewReaderSize(resp.Body, 64<<10); ; {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			if _, err := out.Write(append([]byte(prefix), line...)); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil && ctx.Err() != nil:
			return nil // whoever follows ends it so
		case err != nil:
			return err
		}
	}
}

// lines lets several write, one line at a time.
type lines struct {
	mu sync.Mutex
	to io.Writer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(p)
}
