package crilog

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What is read as a record is written as the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05.678901234Z stdout F content"))
	f.Add([]byte("2026-01-02T03:04:05.678901234+02:00 stderr P:x  "))
	f.Add([]byte("0000-01-01T00:00:00Z stdout F"))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := parse(line)
		if err != nil {
			return
		}
		if !bytes.HasSuffix(line, e.Content) {
			t.Errorf("the content of %q is %q", line, e.Content)
		}
		if bytes.ContainsRune(line, '\n') || e.Time.UTC().Year() < 0 || e.Time.UTC().Year() > 9999 {
			return // no line, and a time that has no form of four digits
		}
		tag := byte('F')
		if e.Partial {
			tag = 'P'
		}
		w := &Writer{}
		w.record(e.Stream, e.Time, tag, e.Content)
		again, err := parse(bytes.TrimSuffix(w.out, []byte("\n")))
		if err != nil || !again.Time.Equal(e.Time) || again.Stream != e.Stream || again.Partial != e.Partial || !bytes.Equal(again.Content, e.Content) {
			t.Errorf("%q is %+v, and written again %+v, %v", line, e, again, err)
		}
	})
}

// Any file can be read as a log, in any part: what comes is in it, in order, and not more than was asked for.
func FuzzRead(f *testing.F) {
	const record = "2026-01-02T03:04:05.678901234Z stdout F content\n"
	f.Add([]byte(strings.Repeat(record, 3)), int64(1), int64(9))
	f.Add([]byte("garbage\n"+record+"2026-01-02T03:04:05.678901234Z stderr P torn"), int64(-1), int64(0))
	path := filepath.Join(f.TempDir(), "log")
	f.Fuzz(func(t *testing.T, data []byte, tail, limit int64) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		limit = max(limit, 0)
		var all []byte
		lines := int64(0)
		err := Read(t.Context(), path, Options{Tail: tail, LimitBytes: limit}, func(e Entry) error {
			all = append(all, e.Content...)
			if !e.Partial {
				lines++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if limit > 0 && int64(len(all)) > limit {
			t.Errorf("%d bytes of at most %d", len(all), limit)
		}
		if tail >= 0 && lines > tail {
			t.Errorf("%d lines of at most %d", lines, tail)
		}
		if len(all) > len(data) {
			t.Errorf("%d bytes of a file of %d", len(all), len(data))
		}
	})
}

// What was left of a log by a crash ends with a whole line once it is open again, and what is written then can be read.
func FuzzRepair(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05Z stdout F whole\n2026-01-02T03:04:05Z std"), []byte("new\nlines"))
	path := filepath.Join(f.TempDir(), "log")
	f.Fuzz(func(t *testing.T, before, output []byte) {
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := Open(path, 100)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(Stdout, time.Unix(1e9, 0), output)
		if err := w.Close(time.Unix(1e9, 0)); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		whole := before[:bytes.LastIndexByte(before, '\n')+1]
		written, ok := bytes.CutPrefix(after, whole)
		if !ok {
			t.Fatalf("%q became %q", before, after)
		}
		var got []byte
		for line := range bytes.Lines(written) {
			e, err := parse(bytes.TrimSuffix(line, []byte("\n")))
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			got = append(got, e.Content...)
			if !e.Partial {
				got = append(got, '\n')
			}
		}
		if !bytes.Equal(got, output) {
			t.Errorf("%q was written, %q is read", output, got)
		}
	})
}
