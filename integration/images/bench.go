package images

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Names of the images of the benchmarks, without a registry.
const (
	BenchApp   = "bench/app:1"   // five layers, busybox, and a program of half a kilobyte that waits for SIGTERM
	BenchPause = "bench/pause:1" // the same program alone, for runtimes that have a process per pod
	BenchLarge = "bench/large:1" // four layers of 64 MiB
	BenchFiles = "bench/files:1" // one layer of 20,000 files
)

// MakeBench writes the images of the benchmarks, with names of the given registry, to the layout dir, which is replaced.
// program is a static executable that waits for SIGTERM. work is as for Make.
func MakeBench(ctx context.Context, dir, work, registry, program string) error {
	wait, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	busybox, err := busyboxTree(ctx, work)
	if err != nil {
		return err
	}
	l, err := createLayout(dir)
	if err != nil {
		return err
	}
	for _, image := range benchImages(busybox, wait) {
		image.Names[0] = registry + "/" + image.Names[0]
		if err := l.add(image); err != nil {
			return fmt.Errorf("image %s: %w", image.Names[0], err)
		}
	}
	return l.finish()
}

func benchImages(busybox *Tree, wait []byte) []Image {
	run := ocispec.ImageConfig{Env: []string{searchPath}, Entrypoint: []string{"/wait"}}
	content := rand.New(rand.NewPCG(3, 5)) // the same in each run, so that what was made once can stay
	words := vocabulary(content)
	large := Image{Names: []string{BenchLarge}, Config: run}
	for i := range 4 {
		tree := NewTree()
		for j := range 8 {
			tree.File(fmt.Sprintf("data/%d/%d", i, j), 0o644, prose(content, words, 8<<20))
		}
		large.Layers = append(large.Layers, tree)
	}
	return []Image{
		{Names: []string{BenchApp}, Config: run, Layers: []*Tree{
			busybox,
			NewTree().File("wait", 0o755, wait),
			NewTree().Text("etc/passwd", passwd).Text("etc/group", group),
			NewTree().Text("etc/app/config", "key = value\n"),
			NewTree().Dir("tmp", 0o1777),
		}},
		{Names: []string{BenchPause}, Config: ocispec.ImageConfig{Env: []string{searchPath}, Entrypoint: []string{"/pause"}},
			Layers: []*Tree{NewTree().File("pause", 0o755, wait)}},
		large,
		{Names: []string{BenchFiles}, Config: run, Layers: []*Tree{manyFiles(content, words, 20_000)}},
	}
}

// manyFiles has folders of 50 files of 0.25 to 16 KiB, most of them small, as the dependencies of a program are.
func manyFiles(content *rand.Rand, words [][]byte, n int) *Tree {
	tree := NewTree()
	for i := range n {
		size := 256 << content.IntN(7)
		tree.File(fmt.Sprintf("lib/%02d/%02d/file-%05d.txt", i/1000, i/50%20, i), 0o644, prose(content, words, size))
	}
	return tree
}

// prose returns n bytes that gzip makes about a third of, as it does of programs and texts.
func prose(content *rand.Rand, words [][]byte, n int) []byte {
	out := make([]byte, 0, n+16)
	for len(out) < n {
		out = append(out, words[content.IntN(len(words))]...)
	}
	return out[:n]
}

func vocabulary(content *rand.Rand) [][]byte {
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 3+content.IntN(9))
		for j := range words[i] {
			words[i][j] = byte(content.IntN(256))
		}
	}
	return words
}
