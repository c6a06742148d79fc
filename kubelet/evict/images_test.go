package evict

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

type shelf struct {
	images  []Image
	used    map[string]bool
	disk    Observation
	now     time.Time
	removed []string
	events  []string
	broken  string
}

func newShelf(now time.Time) *shelf {
	return &shelf{now: now, used: map[string]bool{}, disk: Observation{1000, 1000}}
}

func (s *shelf) collector(change func(*ImageConfig)) *Images {
	cfg := ImageConfig{High: 85, Low: 80, MinAge: 2 * time.Minute, Log: slog.New(slog.DiscardHandler),
		Disk:  func(context.Context) (Observation, error) { return s.disk, nil },
		List:  func() []Image { return s.images },
		InUse: func() map[string]bool { return s.used },
		Remove: func(_ context.Context, id string) error {
			if id == s.broken {
				return errors.New("broken")
			}
			s.removed = append(s.removed, id)
			s.images = slices.DeleteFunc(s.images, func(i Image) bool { return i.ID == id })
			return nil
		},
		Event: func(_, reason, message string) { s.events = append(s.events, reason+" "+message) },
		Now:   func() time.Time { return s.now }}
	if change != nil {
		change(&cfg)
	}
	return NewImages(cfg)
}

func (s *shelf) add(id string, size int64, age time.Duration) {
	s.images = append(s.images, Image{ID: id, Size: size, Pulled: s.now.Add(-age)})
}

func (s *shelf) want(t *testing.T, removed ...string) {
	t.Helper()
	if fmt.Sprint(s.removed) != fmt.Sprint(removed) {
		t.Errorf("removed %v, want %v", s.removed, removed)
	}
}

func TestImages(t *testing.T) {
	s := newShelf(time.Unix(1e9, 0))
	s.add("new", 500, time.Minute)
	s.add("a", 30, time.Hour)
	s.add("used", 500, 9*time.Hour)
	s.add("b", 30, 3*time.Hour)
	s.add("c", 30, 2*time.Hour)
	s.images = append(s.images, Image{ID: "pinned", Size: 500, Pinned: true, Pulled: s.now.Add(-9 * time.Hour)})
	s.used["used"] = true
	g := s.collector(nil)
	s.disk.Available = 160
	if err := g.Step(context.Background()); err != nil {
		t.Error(err)
	}
	s.want(t)
	// b is used for a while, and is then the last to go.
	s.now, s.used["b"] = s.now.Add(time.Minute), true
	if err := g.Step(context.Background()); err != nil {
		t.Error(err)
	}
	delete(s.used, "b")
	s.disk.Available = 145
	if err := g.Step(context.Background()); err != nil {
		t.Error(err)
	}
	s.want(t, "c", "a") // 55 bytes
}

func TestImagesNotEnough(t *testing.T) {
	s := newShelf(time.Unix(1e9, 0))
	s.add("a", 30, time.Hour)
	s.add("b", 30, 2*time.Hour)
	s.broken = "b"
	s.disk.Available = 0
	if err := s.collector(func(c *ImageConfig) { c.High = 100 }).Step(context.Background()); err != nil {
		t.Error(err)
	}
	s.want(t)
	err := s.collector(nil).Step(context.Background())
	if err == nil || len(s.events) != 1 || !strings.Contains(s.events[0], "FreeDiskSpaceFailed Failed to garbage collect required amount of images. Attempted to free 200 bytes, but only found 30 bytes eligible to free.") {
		t.Errorf("%v, events %q", err, s.events)
	}
	s.want(t, "a")
}

func TestImagesMaxAge(t *testing.T) {
	s := newShelf(time.Unix(1e9, 0))
	s.add("old", 30, 3*time.Hour)
	s.add("young", 30, time.Hour)
	s.add("used", 30, 3*time.Hour)
	s.used["used"] = true
	g := s.collector(func(c *ImageConfig) { c.MaxAge = 2 * time.Hour })
	if err := g.Step(context.Background()); err != nil {
		t.Error(err)
	}
	s.want(t, "old")
}

func TestRemoveUnused(t *testing.T) {
	s := newShelf(time.Unix(1e9, 0))
	s.add("a", 30, time.Hour)
	s.add("new", 30, time.Second)
	s.add("used", 30, time.Hour)
	s.used["used"] = true
	s.collector(nil).RemoveUnused(context.Background())
	s.want(t, "a")
}
