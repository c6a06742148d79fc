package crilog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample has lines one, two (in two records), three (stderr), not a record, and an unfinished one.
const sample = `2026-01-02T03:04:01Z stdout F one
2026-01-02T03:04:02Z stdout P tw
2026-01-02T03:04:02.5Z stdout F:tag o
2026-01-02T05:04:03.000000001+02:00 stderr F three
rubbish
2026-01-02T03:04:04Z stdout F
2026-01-02T03:04:05Z stdout P unfin
`

func collect(got *[]string) func(Entry) error {
	return func(e Entry) error {
		tag := "F"
		if e.Partial {
			tag = "P"
		}
		*got = append(*got, fmt.Sprintf("%s %s %s", e.Stream, tag, e.Content))
		return nil
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	all := []string{"stdout F one", "stdout P tw", "stdout F o", "stderr F three", "stdout F ", "stdout P unfin"}
	for name, tc := range map[string]struct {
		opts Options
		want []string
	}{
		"all":                       {Options{Tail: -1}, all},
		"more than there is":        {Options{Tail: 100}, all},
		"tail 0":                    {Options{}, nil},
		"tail 1, unfinished":        {Options{Tail: 1}, all[5:]},
		"tail 2":                    {Options{Tail: 2}, all[4:]},
		"tail, rubbish is a line":   {Options{Tail: 3}, all[4:]},
		"tail 4":                    {Options{Tail: 4}, all[3:]},
		"tail, line of two":         {Options{Tail: 5}, all[1:]},
		"since":                     {Options{Tail: -1, Since: time.Date(2026, 1, 2, 3, 4, 3, 0, time.UTC)}, all[3:]},
		"since, after a nanosecond": {Options{Tail: -1, Since: time.Date(2026, 1, 2, 3, 4, 3, 2, time.UTC)}, all[4:]},
		"limit at a line":           {Options{Tail: -1, LimitBytes: 4}, all[:1]},
		"limit within a line":       {Options{Tail: -1, LimitBytes: 5}, []string{"stdout F one", "stdout P t"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			if err := Read(t.Context(), path, tc.opts, collect(&got)); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTailWithLongRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w := open(t, path, 0)
	for i := range 10 {
		w.Write(Stdout, at, []byte(strings.Repeat(string(rune('0'+i)), 40_000)+"\n"))
	}
	var got []string
	if err := Read(t.Context(), path, Options{Tail: 3}, collect(&got)); err != nil {
		t.Fatal(err)
	}
	if len(got) != 9 || got[0][9] != '7' { // three lines of three records
		t.Errorf("got %d records, the first is %.12q…, want 9 from line 7 on", len(got), got[0])
	}
}

func TestErrors(t *testing.T) {
	if err := Read(t.Context(), filepath.Join(t.TempDir(), "none"), Options{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a log that is not there: %v", err)
	}
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	if err := Read(t.Context(), path, Options{Tail: -1}, func(Entry) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("an error of emit: %v", err)
	}
}

// follow reads path until ended or ctx ends, and hands out what it gets.
func follow(ctx context.Context, path string, ended chan struct{}) (lines chan string, result chan error) {
	lines, result = make(chan string), make(chan error, 1)
	go func() {
		result <- Read(ctx, path, Options{Tail: -1, Follow: true, Ended: ended}, func(e Entry) error {
			lines <- string(e.Content)
			return nil
		})
		close(lines)
	}()
	return lines, result
}

func TestFollowAcrossRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	w := open(t, path, 0)
	ended := make(chan struct{})
	lines, result := follow(t.Context(), path, ended)
	want := func(s string) {
		t.Helper()
		if got := <-lines; got != s {
			t.Fatalf("got %q, want %q", got, s)
		}
	}
	w.Write(Stdout, at, []byte("one\n"))
	want("one")
	for i := range 5 {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
			t.Fatal(err)
		}
		w.Write(Stdout, at, fmt.Appendf(nil, "old %d\n", i)) // into the renamed file
		if err := w.Reopen(); err != nil {
			t.Fatal(err)
		}
		w.Write(Stdout, at, fmt.Appendf(nil, "new %d\n", i))
		want(fmt.Sprintf("old %d", i))
		want(fmt.Sprintf("new %d", i))
	}
	w.Write(Stdout, at, []byte("unfinished"))
	if err := w.Close(at); err != nil {
		t.Fatal(err)
	}
	close(ended)
	want("unfinished")
	if more, ok := <-lines; ok {
		t.Errorf("got %q after the end", more)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w := open(t, path, 0)
	ctx, cancel := context.WithCancel(t.Context())
	lines, result := follow(ctx, path, nil)
	w.Write(Stdout, at, []byte("one\n"))
	if got := <-lines; got != "one" {
		t.Fatalf("got %q", got)
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("follow ended with %v", err)
	}
}
