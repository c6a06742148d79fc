package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

func (b *bench) casePull(ctx context.Context) error {
	for _, c := range []struct{ name, what, image string }{
		{"pull-large", "pull of 4 layers of 64 MiB", largeImage},
		{"pull-files", "pull of 20,000 files", filesImage},
	} {
		if err := b.pulls(ctx, c.name, c.what, b.ref(c.image)); err != nil {
			return err
		}
	}
	return nil
}

// pulls measures the pull of an image, then again with the image there.
func (b *bench) pulls(ctx context.Context, name, what, ref string) error {
	first := &table{Name: name, What: what, Unit: "ms"}
	cpu := &table{Name: name + "-cpu", What: what + ", CPU time", Unit: "ms"}
	most := &table{Name: name + "-memory", What: what + ", peak memory (RSS) of the daemon", Unit: "MiB"}
	again := &table{Name: name + "-again", What: what + " that is there", Unit: "ms"}
	requests := map[string]string{}
	err := b.byTurns(max(b.n/3, 2), func(t *target) error {
		if !b.firstOfItsKind(t) {
			return nil
		}
		return b.pullOnce(ctx, t, ref, first, cpu, most, again, requests)
	})
	if err != nil {
		return err
	}
	for _, t := range b.targets {
		if r, ok := requests[t.name]; ok {
			again.note("%s asked for %s", t.name, r)
		}
	}
	for _, t := range []*table{first, cpu, most, again} {
		b.publish(t)
	}
	return nil
}

// firstOfItsKind leaves out what pulls with the same program as a target before it: neither the network nor the OCI
// runtime has a part in a pull.
func (b *bench) firstOfItsKind(t *target) bool {
	i := slices.IndexFunc(b.targets, func(other *target) bool { return other.version == t.version })
	return b.targets[i] == t
}

func (b *bench) pullOnce(ctx context.Context, t *target, ref string, first, cpu, most, again *table, requests map[string]string) error {
	syncDisk()
	if err := resetPeak(t.pid); err != nil {
		return err
	}
	before, measured := t.cpuTime()
	began := time.Now()
	if _, err := t.pull(ctx, ref); err != nil {
		return err
	}
	first.add(t.name, ms(time.Since(began)))
	if after, _ := t.cpuTime(); measured {
		cpu.add(t.name, ms(after-before))
	}
	highest, err := peak(t.pid)
	if err != nil {
		return err
	}
	most.add(t.name, float64(highest)/(1<<20))

	seen := len(b.registry.Requests())
	began = time.Now()
	if _, err := t.pull(ctx, ref); err != nil {
		return err
	}
	again.add(t.name, ms(time.Since(began)))
	var asked []string
	for _, r := range b.registry.Requests()[seen:] {
		asked = append(asked, fmt.Sprintf("%s %s", r.Method, kind(r.Path)))
	}
	requests[t.name] = strings.Join(asked, ", ")
	return t.removeImage(ctx, ref)
}

// kind says what of a registry a path is.
func kind(path string) string {
	switch {
	case strings.Contains(path, "/manifests/sha256:"):
		return "manifest by digest"
	case strings.Contains(path, "/manifests/"):
		return "manifest by tag"
	case strings.Contains(path, "/blobs/"):
		return "blob"
	}
	return path
}
