package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/jsonpath"
)

// WaitOptions are those of "berth wait".
type WaitOptions struct {
	Scope
	All      bool
	For      string
	Timeout  time.Duration // 0: look once; negative: a week
	Out, Err io.Writer
}

// A met condition says whether an object is what is waited for.
type met func(object map[string]any) (bool, error)

// condition reads what --for says. "delete" and "create" have none.
func condition(text string) (met, error) {
	kind, rest, _ := strings.Cut(text, "=")
	switch strings.ToLower(kind) {
	case "delete", "create":
		return nil, nil
	case "condition":
		name, value, ok := strings.Cut(rest, "=")
		if !ok {
			value = "true"
		}
		return func(o map[string]any) (bool, error) {
			all, _, err := unstructured.NestedSlice(o, "status", "conditions")
			for _, c := range all {
				m, _ := c.(map[string]any)
				if strings.EqualFold(fmt.Sprint(m["type"]), name) {
					return strings.EqualFold(fmt.Sprint(m["status"]), value), err
				}
			}
			return false, err
		}, nil
	case "jsonpath":
		return pathCondition(rest)
	}
	return nil, fmt.Errorf("unrecognized condition: %q", text)
}

// pathCondition is {.status.phase}=Running, or {.status.podIP} for any value.
func pathCondition(text string) (met, error) {
	text = strings.Trim(text, "'\"")
	path, value, hasValue := text, "", false
	if end := strings.LastIndex(text, "}="); end >= 0 {
		path, value, hasValue = text[:end+1], strings.Trim(text[end+2:], "'\""), true
	} else if !strings.HasPrefix(text, "{") {
		path, value, hasValue = strings.Cut(text, "=")
	}
	j := jsonpath.New("wait").AllowMissingKeys(true)
	if err := j.Parse(relaxed(path)); err != nil {
		return nil, err
	}
	return func(o map[string]any) (bool, error) {
		found, err := j.FindResults(o)
		if err != nil || len(found) == 0 || len(found[0]) == 0 {
			return false, err
		}
		if len(found) > 1 || len(found[0]) > 1 {
			return false, errors.New("given jsonpath expression matches more than one value")
		}
		got := fmt.Sprint(found[0][0].Interface())
		return !hasValue || got == value, nil
	}, nil
}

// Wait waits until objects are as they shall be.
func (c *Client) Wait(ctx context.Context, args []string, o WaitOptions) error {
	if o.For == "" {
		return errors.New("must specify --for=")
	}
	wanted, err := condition(o.For)
	if err != nil {
		return err
	}
	if o.Timeout < 0 {
		o.Timeout = 7 * 24 * time.Hour
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second // enough to look
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	all, err := c.doomedOrNot(ctx, args, o)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return errors.New("no matching resources found")
	}
	kind, _, _ := strings.Cut(strings.ToLower(o.For), "=")
	var failed []error
	for _, t := range all {
		scope := Scope{Namespace: t.namespace}
		var err error
		said := "condition met"
		switch kind {
		case "delete":
			said, err = "condition met", c.awaitGone(ctx, t.target, scope, "")
		case "create":
			err = c.awaitObject(ctx, t.target, scope, true, func(map[string]any) (bool, error) { return true, nil })
		default:
			err = c.awaitObject(ctx, t.target, scope, false, wanted)
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintf(o.Out, "%s %s\n", t, said)
	}
	return Joined(o.Err, failed)
}

func (c *Client) doomedOrNot(ctx context.Context, args []string, o WaitOptions) ([]doomed, error) {
	all, failed := c.doomed(ctx, args, DeleteOptions{Scope: o.Scope, All: o.All, Out: io.Discard})
	return all, errors.Join(failed...)
}

// awaitGone waits until an object is not there any more, or is another one.
func (c *Client) awaitGone(ctx context.Context, t target, s Scope, uid types.UID) error {
	is := func(o map[string]any) bool {
		return uid == "" || (&unstructured.Unstructured{Object: o}).GetUID() == uid
	}
	return c.await(ctx, t, s, func(o map[string]any, there bool) (bool, error) { return !there || !is(o), nil })
}

// awaitObject waits until an object is as it shall be. One that is not there is an error, unless it may come.
func (c *Client) awaitObject(ctx context.Context, t target, s Scope, mayCome bool, wanted met) error {
	return c.await(ctx, t, s, func(o map[string]any, there bool) (bool, error) {
		if there {
			return wanted(o)
		}
		if mayCome {
			return false, nil
		}
		return false, apierrors.NewNotFound(schemaOf(t), t.name)
	})
}

// await looks at an object and at its changes until done says so. A watch that breaks off, because the daemon was replaced,
// say, begins again.
func (c *Client) await(ctx context.Context, t target, s Scope, done func(o map[string]any, there bool) (bool, error)) error {
	timedOut := func(err error) error {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("timed out waiting for the condition on %s/%s", t.kind.Name, t.name)
		}
		return err
	}
	list := target{kind: t.kind}
	s.Fields = "metadata.name=" + t.name
	for {
		var now unstructured.UnstructuredList
		var raw unstructured.Unstructured
		if err := c.get(ctx, call{path: list.path(s), query: s.query()}, &raw); err != nil {
			return timedOut(err)
		}
		if l, err := raw.ToList(); err == nil {
			now = *l
		}
		var object map[string]any
		if len(now.Items) > 0 {
			object = now.Items[0].Object
		}
		if ok, err := done(object, object != nil); ok || err != nil {
			return err
		}
		r := call{path: list.path(s), query: s.query()}
		r.query.Set("resourceVersion", raw.GetResourceVersion())
		ended := false
		err := c.watch(ctx, r, func(e change) (bool, error) {
			var o unstructured.Unstructured
			if err := o.UnmarshalJSON(e.Object); err != nil {
				return false, err
			}
			ok, err := done(o.Object, e.Type != watch.Deleted)
			ended = ok
			return !ok, err
		})
		switch {
		case ended || err == nil:
			return nil
		case errors.Is(err, errWatchOver), apierrors.IsResourceExpired(err):
			continue
		default:
			return timedOut(err)
		}
	}
}
