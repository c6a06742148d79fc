package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/cli-runtime/pkg/printers"
)

// EventOptions are those of "berth events".
type EventOptions struct {
	Scope
	For       string // "pod/web"
	Types     []string
	Watch     bool
	NoHeaders bool
	Output    string // "", json, yaml
	Out, Err  io.Writer
}

// Events prints events, the oldest first.
func (c *Client) Events(ctx context.Context, o EventOptions) error {
	kind, err := c.resource(ctx, "events")
	if err != nil {
		return err
	}
	for i, t := range o.Types {
		if o.Types[i] = strings.ToUpper(t[:min(1, len(t))]) + strings.ToLower(t[min(1, len(t)):]); o.Types[i] != v1.EventTypeNormal && o.Types[i] != v1.EventTypeWarning {
			return fmt.Errorf("valid --types are Normal or Warning")
		}
	}
	if o.For != "" {
		about, err := c.targets(ctx, []string{o.For})
		if err != nil {
			return err
		}
		if about[0].name == "" {
			return fmt.Errorf("--for must be in resource/name form")
		}
		o.Fields = "involvedObject.kind=" + about[0].kind.Kind + ",involvedObject.name=" + about[0].name
	}
	r := call{path: target{kind: kind}.path(o.Scope), query: o.query()}
	var list v1.EventList
	if err := c.get(ctx, r, &list); err != nil {
		return err
	}
	events := slices.DeleteFunc(list.Items, func(e v1.Event) bool { return !o.wants(&e) })
	slices.SortStableFunc(events, func(a, b v1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	if o.Output != "" {
		return o.printObjects(events)
	}
	if len(events) == 0 && !o.Watch {
		if o.AllNamespaces {
			fmt.Fprintln(o.Err, "No events found.")
		} else {
			fmt.Fprintf(o.Err, "No events found in %s namespace.\n", o.Namespace)
		}
		return nil
	}
	w := printers.GetNewTabWriter(o.Out)
	if !o.NoHeaders {
		o.row(w, "LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE", "NAMESPACE")
	}
	for i := range events {
		o.event(w, &events[i])
	}
	w.Flush()
	if !o.Watch {
		return nil
	}
	r.query.Set("resourceVersion", list.ResourceVersion)
	err = c.watch(ctx, r, func(e change) (bool, error) {
		var event v1.Event
		if err := json.Unmarshal(e.Object, &event); err != nil {
			return false, err
		}
		if e.Type != watch.Deleted && o.wants(&event) {
			o.event(w, &event)
		}
		w.Flush()
		return true, nil
	})
	if ctx.Err() != nil {
		return nil // whoever follows ends it so
	}
	return err
}

func (o *EventOptions) wants(e *v1.Event) bool {
	return len(o.Types) == 0 || slices.Contains(o.Types, e.Type)
}

func (o *EventOptions) row(w io.Writer, seen, kind, reason, object, message, namespace string) {
	if o.AllNamespaces {
		fmt.Fprintf(w, "%s\t", namespace)
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", seen, kind, reason, object, message)
}

func (o *EventOptions) event(w io.Writer, e *v1.Event) {
	o.row(w, seen(e), e.Type, e.Reason, e.InvolvedObject.Kind+"/"+e.InvolvedObject.Name, strings.TrimSpace(e.Message), e.Namespace)
}

// seen says how long ago an event was, and how often.
func seen(e *v1.Event) string {
	if e.Count > 1 {
		return fmt.Sprintf("%s (x%d over %s)", since(e.LastTimestamp), e.Count, since(e.FirstTimestamp))
	}
	return since(e.FirstTimestamp)
}

// since is how long ago a moment is.
func since(t metav1.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(time.Since(t.Time))
}

func (o *EventOptions) printObjects(events []v1.Event) error {
	list := &v1.EventList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "EventList"}, Items: events}
	switch o.Output {
	case "json":
		return (&printers.JSONPrinter{}).PrintObj(list, o.Out)
	case "yaml":
		return (&printers.YAMLPrinter{}).PrintObj(list, o.Out)
	}
	return fmt.Errorf("--output must be json or yaml")
}
