package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A LogLine is one line of a container's log, put together from its parts.
type LogLine struct {
	Time   time.Time
	Stream string
	Text   string
}

// LogPath returns the file of the container's log.
func (c *Container) LogPath() string {
	return filepath.Join(c.Pod.Config.LogDirectory, c.Config.LogPath)
}

// Log reads the container's log as it is now. A line that does not have the CRI's form fails the test.
func (c *Container) Log(t testing.TB) []LogLine {
	t.Helper()
	lines, err := ReadLog(c.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// Texts returns the texts of the lines of one stream.
func Texts(lines []LogLine, stream string) []string {
	var texts []string
	for _, l := range lines {
		if l.Stream == stream {
			texts = append(texts, l.Text)
		}
	}
	return texts
}

// ReadLog parses a file in the CRI's log format: time, stream, tags (P: the line goes on; F: it is full), text. What is
// there of a line whose end has not come is a line too, the last of its stream.
func ReadLog(file string) ([]LogLine, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var lines []LogLine
	open := map[string]*LogLine{} // lines whose end has not come
	for i, raw := range strings.SplitAfter(string(data), "\n") {
		if raw == "" {
			continue
		}
		if !strings.HasSuffix(raw, "\n") {
			break // being written
		}
		fields := strings.SplitN(strings.TrimSuffix(raw, "\n"), " ", 4)
		if len(fields) < 4 || (fields[1] != "stdout" && fields[1] != "stderr") || (fields[2] != "P" && fields[2] != "F") {
			return nil, fmt.Errorf("%s:%d: not a line of a CRI log: %q", file, i+1, raw)
		}
		at, err := time.Parse(time.RFC3339Nano, fields[0])
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
		line := open[fields[1]]
		if line == nil {
			line = &LogLine{Time: at, Stream: fields[1]}
			open[fields[1]] = line
		}
		line.Text += fields[3]
		if fields[2] == "F" {
			lines = append(lines, *line)
			delete(open, fields[1])
		}
	}
	for _, line := range open {
		lines = append(lines, *line)
	}
	return lines, nil
}
