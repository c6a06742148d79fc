package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var at = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

const stamp = "2026-01-02T03:04:05.000000006Z"

func open(t *testing.T, path string, maxLine int) *Writer {
	t.Helper()
	w, err := Open(path, maxLine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(at) })
	return w
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s holds\n%swant\n%s", filepath.Base(path), got, want)
	}
}

func TestRecords(t *testing.T) {
	type piece struct {
		stream Stream
		data   string
	}
	for name, tc := range map[string]struct {
		maxLine int
		pieces  []piece
		want    []string // without the time
	}{
		"whole lines":           {0, []piece{{Stdout, "a\nb\n"}, {Stderr, "c\n"}}, []string{"stdout F a", "stdout F b", "stderr F c"}},
		"empty line":            {0, []piece{{Stdout, "\n"}}, []string{"stdout F "}},
		"line in pieces":        {0, []piece{{Stdout, "a"}, {Stdout, "b"}, {Stdout, "c\nd"}, {Stdout, "\n"}}, []string{"stdout F abc", "stdout F d"}},
		"streams do not mix":    {0, []piece{{Stdout, "a"}, {Stderr, "b\n"}, {Stdout, "c\n"}}, []string{"stderr F b", "stdout F ac"}},
		"end without newline":   {0, []piece{{Stdout, "a\nb"}, {Stderr, "c"}}, []string{"stdout F a", "stdout P b", "stderr P c"}},
		"carriage return stays": {0, []piece{{Stdout, "a\r\n"}}, []string{"stdout F a\r"}},
		"too long":              {4, []piece{{Stdout, "abcdefghij\n"}}, []string{"stdout P abcd", "stdout P efgh", "stdout F ij"}},
		"just long enough":      {4, []piece{{Stdout, "abcd\nefgh\n"}}, []string{"stdout F abcd", "stdout F efgh"}},
		"just long in pieces":   {4, []piece{{Stdout, "abcd"}, {Stdout, "\n"}}, []string{"stdout F abcd"}},
		"too long in pieces":    {4, []piece{{Stdout, "abc"}, {Stdout, "defghij"}, {Stdout, "kl\n"}}, []string{"stdout P abcd", "stdout P efgh", "stdout F ijkl"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			w := open(t, path, tc.maxLine)
			for _, p := range tc.pieces {
				w.Write(p.stream, at, []byte(p.data))
			}
			if err := w.Close(at); err != nil {
				t.Fatal(err)
			}
			var want strings.Builder
			for _, record := range tc.want {
				fmt.Fprintf(&want, "%s %s\n", stamp, record)
			}
			wantFile(t, path, want.String())
			if n, dropped := w.Counts(); n != uint64(want.Len()) || dropped != 0 {
				t.Errorf("counts are %d and %d, want %d and 0", n, dropped, want.Len())
			}
			w.Write(Stdout, at, []byte("late\n")) // ignored
			wantFile(t, path, want.String())
		})
	}
}

func TestOpenCutsATornRecord(t *testing.T) {
	whole := stamp + " stdout F whole\n"
	for name, tc := range map[string]struct{ before, want string }{
		"whole":        {whole, whole},
		"torn":         {whole + stamp + " stdo", whole},
		"torn, long":   {whole + strings.Repeat("x", 9000), whole},
		"nothing else": {"2026-", ""},
		"empty":        {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			if err := os.WriteFile(path, []byte(tc.before), 0o600); err != nil {
				t.Fatal(err)
			}
			w := open(t, path, 0)
			w.Write(Stdout, at, []byte("next\n"))
			wantFile(t, path, tc.want+stamp+" stdout F next\n")
		})
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	path, old := filepath.Join(dir, "0.log"), filepath.Join(dir, "0.log.1")
	w := open(t, path, 0)
	w.Write(Stdout, at, []byte("one\nhal"))
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	w.Write(Stdout, at, []byte("f\n"))
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	w.Write(Stdout, at, []byte("two\n"))
	wantFile(t, old, stamp+" stdout F one\n"+stamp+" stdout F half\n")
	wantFile(t, path, stamp+" stdout F two\n")

	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := w.Reopen(); err == nil {
		t.Error("Reopen made a file in a folder that is not there")
	}
	w.Write(Stdout, at, []byte("three\n"))
	if _, dropped := w.Counts(); dropped != 0 {
		t.Errorf("after a failed Reopen %d bytes were dropped, want the old file in use", dropped)
	}
}

// After a crash, no end of a line passes for a line.
func TestResync(t *testing.T) {
	for name, tc := range map[string]struct {
		before string
		pieces []string
		want   string
	}{
		"rest of a line":      {"stdout F one", []string{"wo\nthr", "ee\n"}, "stdout F three"},
		"rest in pieces":      {"stdout F one", []string{"w", "o", "\n", "three\n"}, "stdout F three"},
		"long line is ended":  {"stdout P abc", []string{"def\nnext\n"}, "stdout F \nstdout F next"},
		"other stream":        {"stdout F one\nstderr P abc", []string{"wo\nthree\n"}, "stdout F three"},
		"other stream behind": {"stdout P abc\nstderr F x", []string{"wo\nthree\n"}, "stdout F \nstdout F three"},
		"without lines":       {"stdout P abc", []string{strings.Repeat("x", maxResync-1), "xend\n"}, "stdout F \nstdout F end"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			var before, want strings.Builder
			for record := range strings.Lines(tc.before + "\n") {
				before.WriteString(stamp + " " + record)
			}
			for record := range strings.Lines(tc.want + "\n") {
				want.WriteString(stamp + " " + record)
			}
			if err := os.WriteFile(path, []byte(before.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			w := open(t, path, 0)
			if err := w.Resync(Stdout, at); err != nil {
				t.Fatal(err)
			}
			if w.Settled(Stdout) {
				t.Error("settled before the end of the line")
			}
			for _, piece := range tc.pieces {
				w.Write(Stdout, at, []byte(piece))
			}
			if !w.Settled(Stdout) {
				t.Error("not settled at the end")
			}
			wantFile(t, path, before.String()+want.String())
		})
	}
}

// A log that is handed over in the middle of lines, and of a rotation, goes on as if nothing had been.
func TestHandOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w := open(t, path, 4)
	w.Write(Stdout, at, []byte("one\nha"))
	w.Write(Stderr, at, []byte("abcdef"))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	held, file := w.HandOver()
	next := Resume(path, 4, file, held)
	next.Write(Stdout, at, []byte("lf\n"))
	next.Write(Stderr, at, []byte("g\n"))
	if err := next.Reopen(); err != nil {
		t.Fatal(err)
	}
	next.Write(Stdout, at, []byte("two\n"))
	if err := next.Close(at); err != nil {
		t.Fatal(err)
	}
	before := stamp + " stdout F one\n" + stamp + " stderr P abcd\n" + stamp + " stdout F half\n" + stamp + " stderr F efg\n"
	wantFile(t, path+".1", before)
	wantFile(t, path, stamp+" stdout F two\n")
	if written, _ := next.Counts(); written != uint64(len(before)+len(stamp+" stdout F two\n")) {
		t.Errorf("%d bytes written in all", written)
	}
	if err := Resume("", 0, nil, Handover{}).Close(at); err != nil {
		t.Error(err)
	}
}

func TestAFullDiskDropsAndCounts(t *testing.T) {
	w := open(t, filepath.Join(t.TempDir(), "log"), 0)
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.file.Close()
	w.file = full // a device is not opened as a log
	w.Write(Stdout, at, []byte("lost\n"))
	want := uint64(len(stamp + " stdout F lost\n"))
	if n, dropped := w.Counts(); n != 0 || dropped != want {
		t.Errorf("counts are %d and %d, want 0 and %d", n, dropped, want)
	}
}

// When there is room again, the log says what is missing, in a record of its own, and does not take what comes for the end
// of a line whose end was lost.
func TestTheLogSaysWhatIsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w := open(t, path, 4)
	var told []error
	w.Lost = func(why error) { told = append(told, why) }
	w.Write(Stdout, at, []byte("a\nbcdefg"))
	good := w.file
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	w.file = full
	for range 3 {
		w.Write(Stdout, at, []byte("h\nlost\n"))
		w.Write(Stderr, at, []byte("lost too\n"))
	}
	w.file = good
	held, file := w.HandOver() // what is missing outlives the program
	if held.MissingRecords != 12 {
		t.Errorf("handed over: %+v", held)
	}
	w = Resume(path, 4, file, held)
	w.Lost = func(why error) { told = append(told, why) }
	w.Write(Stdout, at, []byte("z\n"))
	w.Write(Stdout, at, []byte("again\n"))
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var records []string
	for _, r := range strings.Split(strings.TrimSuffix(string(got), "\n"), "\n") {
		records = append(records, r[len(stamp)+1:])
	}
	_, dropped := w.Counts()
	want := []string{
		"stdout F a", "stdout P bcde", "stdout F ",
		fmt.Sprintf("stderr F berth: 12 records of the output (%d bytes) are missing here: no space left on device", dropped),
		"stdout F z", "stdout P agai", "stdout F n",
	}
	if !slices.Equal(records, want) {
		t.Errorf("the log:\n%q\nwant\n%q", records, want)
	}
	if len(told) != 2 || !errors.Is(told[0], syscall.ENOSPC) || told[1] != nil {
		t.Errorf("told %v, want the beginning and the end", told)
	}
}

// Half a record that could not be taken back stays a line of its own.
func TestWhatIsTornStaysAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w := open(t, path, 0)
	if _, err := w.file.WriteString(stamp + " stdout F ha"); err != nil {
		t.Fatal(err)
	}
	w.torn = true
	w.Write(Stdout, at, []byte("whole\n"))
	wantFile(t, path, stamp+" stdout F ha\n"+stamp+" stdout F whole\n")
}

func TestALogThatCanBeOpenedLater(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not yet")
	w := OpenLater(filepath.Join(dir, "0.log"), 0)
	defer w.Close(at)
	w.Write(Stdout, at, []byte("lost\n"))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w.Write(Stdout, at, []byte("kept\n"))
	got, err := os.ReadFile(filepath.Join(dir, "0.log"))
	if err != nil || !strings.Contains(string(got), "1 records of the output") || !strings.HasSuffix(string(got), "stdout F kept\n") {
		t.Errorf("the log: %q, %v", got, err)
	}
}

func TestTrimTakesBackATornRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w := open(t, path, 0)
	batch := []byte("first\nsecond\n")
	if _, err := w.file.Write(batch[:9]); err != nil { // as a disk that fills up would
		t.Fatal(err)
	}
	if n := w.trim(batch, 9); n != len("first\n") {
		t.Errorf("trim left %d bytes, want %d", n, len("first\n"))
	}
	wantFile(t, path, "first\n")
}

func TestDiscard(t *testing.T) {
	w := open(t, "", 0)
	w.Write(Stdout, at, []byte("gone\n"))
	if err := w.Reopen(); err != nil {
		t.Error(err)
	}
	if n, dropped := w.Counts(); n != 0 || dropped != 0 {
		t.Errorf("counts are %d and %d, want 0 and 0", n, dropped)
	}
}

func TestStreamsAtTheSameTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w := open(t, path, 0)
	var wg sync.WaitGroup
	for _, s := range []Stream{Stdout, Stderr} {
		wg.Go(func() {
			for i := range 1000 {
				w.Write(s, at, fmt.Appendf(nil, "line %d of %s\n", i, s))
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := map[Stream]int{}
	for line := range bytes.Lines(data) {
		e, err := parse(bytes.TrimSuffix(line, []byte{'\n'}))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if want := fmt.Sprintf("line %d of %s", next[e.Stream], e.Stream); string(e.Content) != want {
			t.Fatalf("%q comes where %q should", e.Content, want)
		}
		next[e.Stream]++
	}
	if next[Stdout] != 1000 || next[Stderr] != 1000 {
		t.Errorf("%d and %d lines, want 1000 of each", next[Stdout], next[Stderr])
	}
}
