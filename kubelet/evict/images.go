package evict

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
)

// ImageInterval is how often Images looks at the disk.
const ImageInterval = 5 * time.Minute

// An Image is one that is on the node.
type Image struct {
	ID     string
	Size   int64 // in bytes; what it shares with others is counted for each
	Pulled time.Time
	Pinned bool
}

// ImageConfig is what Images needs. All fields but MaxAge are required.
type ImageConfig struct {
	// Above High percent of the disk images are removed, until it is down to Low. High 100 is never.
	High, Low int
	// MinAge is how long an image that nobody uses is kept at least; MaxAge how long at most, 0 for ever.
	MinAge, MaxAge time.Duration
	Disk           func(context.Context) (Observation, error)
	List           func() []Image
	// InUse are the IDs of the images of all containers, dead ones too, and of all pods that are to run.
	InUse  func() map[string]bool
	Remove func(ctx context.Context, id string) error
	Event  func(eventType, reason, message string)
	Now    func() time.Time
	Log    *slog.Logger
}

// Images removes images that nobody uses when the disk fills, those that were used last longest ago first. Its methods are called
// one at a time.
type Images struct {
	cfg  ImageConfig
	last map[string]time.Time // when an image was last in use, or came
}

// NewImages returns what knows of no use yet: an image counts as used when it was pulled, or is seen to be.
func NewImages(cfg ImageConfig) *Images { return &Images{cfg: cfg, last: map[string]time.Time{}} }

// Step removes images that are too old, and, if the disk is too full, as many as it takes.
func (g *Images) Step(ctx context.Context) error {
	idle := g.idle()
	if g.cfg.MaxAge > 0 {
		for _, image := range idle {
			if g.cfg.Now().Sub(g.last[image.ID]) > g.cfg.MaxAge {
				g.remove(ctx, image)
			}
		}
		idle = g.idle()
	}
	if g.cfg.High >= 100 {
		return nil
	}
	disk, err := g.cfg.Disk(ctx)
	if err == nil && disk.Capacity <= 0 {
		err = errors.New("it has no size")
	}
	if err != nil {
		return fmt.Errorf("the disk of the images cannot be measured: %w", err)
	}
	used := 100 - int(disk.Available*100/disk.Capacity)
	if used < g.cfg.High {
		return nil
	}
	need := disk.Capacity*int64(100-g.cfg.Low)/100 - disk.Available
	g.cfg.Log.Info("the disk is filling: images that nobody uses are removed", "used", fmt.Sprintf("%d%%", used), "bytes", need)
	if freed := g.free(ctx, idle, need); freed < need {
		message := fmt.Sprintf("Failed to garbage collect required amount of images. Attempted to free %d bytes, but only found %d bytes eligible to free.", need, freed)
		g.cfg.Event(v1.EventTypeWarning, "FreeDiskSpaceFailed", message)
		return errors.New(message)
	}
	return nil
}

// RemoveUnused removes all images that nobody uses and that are older than MinAge.
func (g *Images) RemoveUnused(ctx context.Context) {
	g.free(ctx, g.idle(), math.MaxInt64)
}

// idle returns the images that could be removed, the first to go first, and remembers which are in use.
func (g *Images) idle() []Image {
	used, now := g.cfg.InUse(), g.cfg.Now()
	last := map[string]time.Time{}
	var idle []Image
	for _, image := range g.cfg.List() {
		at, seen := g.last[image.ID]
		switch {
		case used[image.ID]:
			at = now
		case !seen:
			at = image.Pulled
		}
		last[image.ID] = at
		if !used[image.ID] && !image.Pinned && now.Sub(image.Pulled) >= g.cfg.MinAge {
			idle = append(idle, image)
		}
	}
	g.last = last
	slices.SortStableFunc(idle, func(a, b Image) int { return cmp.Or(last[a.ID].Compare(last[b.ID]), a.Pulled.Compare(b.Pulled)) })
	return idle
}

func (g *Images) free(ctx context.Context, idle []Image, need int64) (freed int64) {
	for _, image := range idle {
		if freed >= need || ctx.Err() != nil {
			break
		}
		if g.remove(ctx, image) {
			freed += image.Size
		}
	}
	return freed
}

func (g *Images) remove(ctx context.Context, image Image) bool {
	if err := g.cfg.Remove(ctx, image.ID); err != nil {
		g.cfg.Log.Warn("image could not be removed", "image", image.ID, "err", err)
		return false
	}
	g.cfg.Log.Info("image was removed, nobody uses it", "image", image.ID, "bytes", image.Size)
	return true
}
