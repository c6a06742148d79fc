package procfs

import "testing"

// A process chooses its own name, which stands in the middle of the line.
func FuzzStat(f *testing.F) {
	f.Add("sh", "S 1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 777 0 0")
	f.Add(") R 1 (", "Z 1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 18446744073709551615")
	f.Fuzz(func(t *testing.T, name, rest string) {
		st, err := parseStat("12 (" + name + ") " + rest)
		if err != nil {
			return
		}
		plain, err := parseStat("12 (x) " + rest)
		if err != nil || plain != st {
			t.Errorf("%q with the name %q is %+v, and without it %+v, %v", rest, name, st, plain, err)
		}
	})
}
