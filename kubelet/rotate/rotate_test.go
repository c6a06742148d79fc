package rotate

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A pod is a folder with one log.
type pod struct {
	t        *testing.T
	dir      string
	now      time.Time
	reopened int
	fault    error
	*Rotator
}

func newPod(t *testing.T, files int) *pod {
	p := &pod{t: t, dir: t.TempDir(), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	path := filepath.Join(p.dir, "0.log")
	p.Rotator = New(Config{
		MaxSize: 10, MaxFiles: files, Interval: time.Hour, Log: slog.New(slog.DiscardHandler),
		Logs: func() []Log { return []Log{{"gone", filepath.Join(p.dir, "none", "0.log")}, {"c", path}} },
		Now:  func() time.Time { return p.now },
		Reopen: func(_ context.Context, id string) error {
			if id != "c" {
				return errors.New("no such container")
			}
			p.reopened++
			if p.fault != nil {
				return p.fault
			}
			return os.WriteFile(path, nil, 0o640)
		},
	})
	return p
}

func (p *pod) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o640); err != nil {
		p.t.Fatal(err)
	}
}

// step lets a second pass and looks at the logs.
func (p *pod) step() {
	p.now = p.now.Add(time.Second)
	p.Step(context.Background())
}

// want checks which files there are, with their text.
func (p *pod) want(want ...string) {
	p.t.Helper()
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name()+" "+p.text(e.Name()))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		p.t.Errorf("there are %q, want %q", got, want)
	}
}

func (p *pod) text(name string) string {
	p.t.Helper()
	f, err := os.Open(filepath.Join(p.dir, name))
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	var in io.Reader = f
	if strings.HasSuffix(name, compressed) {
		if in, err = gzip.NewReader(f); err != nil {
			p.t.Fatal(err)
		}
	}
	data, err := io.ReadAll(in)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(data)
}

func TestRotates(t *testing.T) {
	p := newPod(t, 3)
	p.write("0.log", "123456789")
	p.step()
	p.want("0.log 123456789")
	p.write("0.log", "first log.")
	p.step()
	p.want("0.log ", "0.log.20260102-030407 first log.")
	p.write("0.log", "second log")
	p.step()
	p.want("0.log ", "0.log.20260102-030407.gz first log.", "0.log.20260102-030408 second log")
	p.write("0.log", "third log.")
	p.step()
	p.want("0.log ", "0.log.20260102-030408.gz second log", "0.log.20260102-030409 third log.")
	if info, err := os.Stat(filepath.Join(p.dir, "0.log.20260102-030408.gz")); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestTwoFiles(t *testing.T) {
	p := newPod(t, 2)
	for range 3 {
		p.write("0.log", "0123456789")
		p.step()
	}
	p.want("0.log ", "0.log.20260102-030408 0123456789")
}

// Two rotations in one second would have the same name: the second waits.
func TestTheSameSecond(t *testing.T) {
	p := newPod(t, 5)
	p.write("0.log", "first log.")
	p.step()
	p.write("0.log", "second log")
	p.Step(context.Background())
	p.want("0.log second log", "0.log.20260102-030406.gz first log.")
	p.step()
	p.want("0.log ", "0.log.20260102-030406.gz first log.", "0.log.20260102-030407 second log")
}

// A daemon that ended while it rotated has lost nothing.
func TestAfterAKill(t *testing.T) {
	p := newPod(t, 5)
	p.write("0.log.20260101-000000", "was renamed and not reopened")
	p.step()
	p.want("0.log ", "0.log.20260101-000000 was renamed and not reopened")
	p.write("0.log.20260101-000000.tmp", "half")
	p.write("0.log.20251231-000000", "done")
	p.write("0.log.20251231-000000.tmp", "half")
	p.write("1.log.20251231-000000.tmp", "another's")
	if err := compress(filepath.Join(p.dir, "0.log.20251231-000000")); err != nil {
		t.Fatal(err)
	}
	p.write("0.log.20251231-000000", "done")
	p.write("0.log", "0123456789")
	p.step()
	p.want("0.log ", "0.log.20251231-000000.gz done", "0.log.20260101-000000.gz was renamed and not reopened", "0.log.20260102-030407 0123456789",
		"1.log.20251231-000000.tmp another's")
}

func TestAContainerThatGoesOnWithTheOldFile(t *testing.T) {
	p := newPod(t, 5)
	p.fault = errors.New("busy")
	p.write("0.log", "0123456789")
	p.step()
	p.want("0.log 0123456789")
	p.fault = nil
	p.step()
	p.want("0.log ", "0.log.20260102-030407 0123456789")
	if p.reopened != 2 {
		t.Errorf("it was asked %d times", p.reopened)
	}
}
