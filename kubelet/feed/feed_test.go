package feed

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-node/berth/internal/errdefs"
)

func pod(namespace, name string) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// told writes changes down as "MODIFIED ns/name@version after version".
func told(changes []Change[*v1.Pod]) string {
	var all []string
	for _, c := range changes {
		text := fmt.Sprintf("%s %s/%s@%s", c.Type, c.Object.Namespace, c.Object.Name, c.Object.ResourceVersion)
		if c.Before != nil {
			text += " after " + c.Before.ResourceVersion
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

func TestListAndFollow(t *testing.T) {
	f := New[*v1.Pod](100, 10)
	f.Put(pod("b", "x"))
	f.Put(pod("a", "z"))
	list, version := f.List()
	if len(list) != 2 || list[0].Name != "z" || list[1].Name != "x" || version != 102 {
		t.Errorf("list %v at %d", list, version)
	}
	w, err := f.Watch(version)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if changes, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("since the list: %q, %v", told(changes), err)
	}
	f.Put(pod("a", "z"))
	f.Delete("b", "x")
	f.Delete("b", "x") // is gone: no change
	if changes, err := w.Next(t.Context()); err != nil || told(changes) != "MODIFIED a/z@103 after 102, DELETED b/x@104 after 101" {
		t.Errorf("%q, %v", told(changes), err)
	}
	go f.Put(pod("a", "y"))
	if changes, err := w.Next(t.Context()); err != nil || told(changes) != "ADDED a/y@105" {
		t.Errorf("after waiting: %q, %v", told(changes), err)
	}
	if _, ok := f.Get("b", "x"); ok {
		t.Error("what was deleted is there")
	}
	if p, ok := f.Get("a", "z"); !ok || p.ResourceVersion != "103" {
		t.Errorf("Get: %v, %v", p, ok)
	}
}

func TestForgets(t *testing.T) {
	f := New[*v1.Pod](1000, 3)
	behind, err := f.Watch(0)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		f.Put(pod("a", "a"))
	}
	if len(f.history) >= 6 {
		t.Errorf("%d changes are remembered, twice 3 at most", len(f.history))
	}
	if _, err := behind.Next(t.Context()); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("a watch that is behind: %v", err)
	}
	for _, version := range []uint64{1, 999, 1001, 1021} {
		if _, err := f.Watch(version); !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Errorf("since %d, which is forgotten or of another table: %v", version, err)
		}
	}
	w, err := f.Watch(1017)
	if err != nil {
		t.Fatal(err)
	}
	if changes, err := w.Next(t.Context()); err != nil || told(changes) != "MODIFIED a/a@1018 after 1017, MODIFIED a/a@1019 after 1018, MODIFIED a/a@1020 after 1019" {
		t.Errorf("%q, %v", told(changes), err)
	}
}
