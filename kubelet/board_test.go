package kubelet

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/berth-node/berth/internal/errdefs"
)

func named(name string, uid types.UID) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: uid}}
}

func TestAWatchTellsAllThatComesAfterTheList(t *testing.T) {
	b := newBoard(time.Unix(1000, 0))
	b.put(named("a", "1"))
	pods, version := b.list()
	if len(pods) != 1 || pods[0].ResourceVersion != fmt.Sprint(version) {
		t.Fatalf("list: %v at %d", pods, version)
	}
	w, err := b.watch(version)
	if err != nil {
		t.Fatal(err)
	}
	b.put(named("b", "2"))
	b.put(named("a", "1"))
	b.remove(named("b", "other")) // not the one that is there
	b.remove(named("b", "2"))
	changes, err := w.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, c := range changes {
		got += fmt.Sprintf("%s %s; ", c.Type, c.Pod.Name)
	}
	if want := "ADDED b; MODIFIED a; DELETED b; "; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("without a change: %v", err)
	}
}

func TestAWatchWakesUp(t *testing.T) {
	b := newBoard(time.Unix(1000, 0))
	w, err := b.watch(0)
	if err != nil {
		t.Fatal(err)
	}
	go b.put(named("a", "1"))
	changes, err := w.Next(t.Context())
	if err != nil || len(changes) != 1 || changes[0].Type != watch.Added {
		t.Errorf("%v, %v", changes, err)
	}
}

func TestAWatchThatIsTooFarBehindIsTold(t *testing.T) {
	b := newBoard(time.Unix(1000, 0))
	w, err := b.watch(0)
	if err != nil {
		t.Fatal(err)
	}
	for range history + 1 {
		b.put(named("a", "1"))
	}
	if _, err := w.Next(t.Context()); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("got %v", err)
	}
	if _, err := b.watch(7); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("a version of another daemon: %v", err)
	}
}
