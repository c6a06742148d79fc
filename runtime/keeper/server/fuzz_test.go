package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An ID that is taken can be the name of a file, and of nothing else.
func FuzzID(f *testing.F) {
	for _, s := range []string{"abc", "..", "a/b", "", "a\x00", ".x", "exec-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if !validID(id) {
			return
		}
		if p := filepath.Join("/run/x", id); filepath.Dir(p) != "/run/x" || strings.ContainsAny(id, "/\x00\n ") || id[0] == '.' {
			t.Errorf("%q", id)
		}
	})
}

// A record of noise is an error that names it.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"request":{"id":"x","logPath":"/x"},"process":{"pid":1,"startTime":2},"exit":{"code":3}}`))
	f.Add([]byte(`{"exit":{}}`))
	path := filepath.Join(f.TempDir(), recordName)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var rec record
		if err := readRecord(path, &rec); err != nil && !strings.Contains(err.Error(), path) {
			t.Error(err)
		}
		var exec execRecord
		if err := readRecord(path, &exec); err != nil && !strings.Contains(err.Error(), path) {
			t.Error(err)
		}
	})
}
