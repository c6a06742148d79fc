package layer

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/go-digest"
)

// BenchmarkUnpackFiles unpacks a layer of many small files, as programs bring them with their dependencies.
func BenchmarkUnpackFiles(b *testing.B) {
	content := rand.New(rand.NewPCG(3, 5))
	words := make([]string, 4096)
	for i := range words {
		words[i] = fmt.Sprintf("%x", content.Uint64())[:3+content.IntN(9)]
	}
	var entries []entry
	for i := range 20_000 {
		var body []byte
		for size := 256 << content.IntN(7); len(body) < size; {
			body = append(body, words[content.IntN(len(words))]...)
		}
		entries = append(entries, entry{name: fmt.Sprintf("lib/%02d/%02d/file-%05d.txt", i/1000, i/50%20, i), body: string(body)})
	}
	plain := archiveOf(b, entries)
	packed := gzipped(b, plain)
	diffID := digest.FromBytes(plain)
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		s := openStore(b)
		if _, err := s.Unpack(b.Context(), UnpackRequest{ChainID: diffID, DiffID: diffID, Open: opener(packed)}); err != nil {
			b.Fatal(err)
		}
	}
}
