// Package crilog writes and reads container logs in the CRI format.
//
// A record is one line of the file:
//
//	2026-01-02T03:04:05.678901234Z stdout F the content of a full line
//	2026-01-02T03:04:05.678901234Z stderr P a piece; the rest of its line follows in further records of its stream
//
// A line that the workload wrote is any number of P records and one F. It is cut into pieces when it is longer than the
// limit of the writer, and it ends with a P when the workload ended without a newline.
package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// DefaultMaxLine bounds the content of one record, in bytes, as containerd and CRI-O do.
const DefaultMaxLine = 16 << 10

// timeFormat has a fixed width, so that records sort as text. All readers of the CRI format parse RFC3339Nano.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// A Stream is one of a workload's outputs.
type Stream int

const (
	Stdout Stream = iota
	Stderr
)

func (s Stream) String() string {
	if s == Stderr {
		return "stderr"
	}
	return "stdout"
}

// An Entry is one record of a log.
type Entry struct {
	Time   time.Time
	Stream Stream
	// Partial says that the line goes on in the next record of the stream.
	Partial bool
	// Content has no newline. It is valid until the next record is read.
	Content []byte
}

var errFormat = errors.New("not a record of the CRI log format")

// parse reads one line of a log, without its newline.
func parse(line []byte) (Entry, error) {
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tags, content, ok3 := bytes.Cut(rest, []byte(" "))
	if !ok || !ok2 {
		return Entry{}, errFormat
	}
	if !ok3 { // an empty line may have lost its last space
		tags, content = rest, nil
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return Entry{}, fmt.Errorf("%w: %w", errFormat, err)
	}
	e := Entry{Time: t, Content: content}
	switch string(stream) {
	case "stdout":
	case "stderr":
		e.Stream = Stderr
	default:
		return Entry{}, errFormat
	}
	// Tags are separated by colons; the first says whether the line is whole.
	first, _, _ := bytes.Cut(tags, []byte(":"))
	switch string(first) {
	case "F":
	case "P":
		e.Partial = true
	default:
		return Entry{}, errFormat
	}
	return e, nil
}
