package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/internal/atomicfile"
)

// A journal keeps the events of a store over the death of the daemon: a file with a line for each occurrence, of which the last
// one of an event counts. A line is written when the event happens, and left to the kernel: a daemon that is killed loses
// nothing, a machine without power the last seconds. Nobody waits for a disk.
type journal struct {
	path  string
	file  *os.File // nil while it cannot be written
	size  int64
	lines int
}

// maxLines bounds the file: then it is written anew, with what is kept.
const maxLines = 2 * maxEvents

// openJournal opens the file for more, and returns the events in it, the one that happened last at the end. The error says what of it could not be had.
func openJournal(path string) (*journal, []*v1.Event, error) {
	j := &journal{path: path}
	data, err := atomicfile.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	j.size = int64(len(data))
	events, damage := j.parse(data)
	if err = errors.Join(err, damage); err != nil || j.lines > maxLines {
		return j, events, errors.Join(err, j.rewrite(events))
	}
	return j, events, j.open()
}

func (j *journal) open() (err error) {
	j.file, err = os.OpenFile(j.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	return err
}

// parse reads lines. Of a damaged one nothing is known but that it is there: the others count.
func (j *journal) parse(data []byte) ([]*v1.Event, error) {
	last := map[string]*v1.Event{}
	var events []*v1.Event
	damaged := 0
	for line := range bytes.Lines(data) {
		j.lines++
		e := &v1.Event{}
		if json.Unmarshal(line, e) != nil || e.Name == "" || line[len(line)-1] != '\n' {
			damaged++
			continue
		}
		last[e.Namespace+"/"+e.Name] = e
		events = append(events, e)
	}
	events = slices.DeleteFunc(events, func(e *v1.Event) bool { return last[e.Namespace+"/"+e.Name] != e })
	if damaged > 0 {
		return events, fmt.Errorf("%s: %d of %d lines are damaged", j.path, damaged, j.lines)
	}
	return events, nil
}

// add writes a line. What could be written of one that cannot be written whole goes: the next one is to stand on its own.
func (j *journal) add(e *v1.Event) error {
	if j.file == nil {
		if err := j.open(); err != nil {
			return err
		}
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if _, err := j.file.Write(line); err != nil {
		return errors.Join(err, j.file.Truncate(j.size))
	}
	j.size += int64(len(line))
	j.lines++
	return nil
}

// rewrite makes the file one of just these events.
func (j *journal) rewrite(events []*v1.Event) error {
	j.close()
	var text bytes.Buffer
	lines := json.NewEncoder(&text)
	for _, e := range events {
		if err := lines.Encode(e); err != nil {
			return err
		}
	}
	if err := atomicfile.Write(j.path, text.Bytes(), 0o600); err != nil {
		return err
	}
	j.lines, j.size = len(events), int64(text.Len())
	return j.open()
}

func (j *journal) close() {
	if j.file != nil {
		_ = j.file.Close()
		j.file = nil
	}
}
