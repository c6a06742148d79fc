package crilog

import (
	"bytes"
	"io"
	"os"
)

// headLength is enough of a record to see its tag, whatever the length of the time.
const headLength = 64

// tailStart returns the offset at which the last n lines of the log begin. A line counts once, however many records it
// has; records of both streams are taken as they come.
func tailStart(f *os.File, n int64) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return size, err
	}
	// Go backwards from record to record. A full record ends a line; the records before it that are partial belong to
	// it, so the line begins behind the full record before.
	var lines int64
	end := size
	for end > 0 {
		start, err := recordStart(f, end)
		if err != nil {
			return 0, err
		}
		full, err := endsLine(f, start, end)
		if err != nil {
			return 0, err
		}
		if full || end == size { // the last record counts even if its line has no end
			lines++
		}
		if lines > n {
			return end, nil
		}
		end = start
	}
	return 0, nil
}

// recordStart returns where the record begins that ends at end.
func recordStart(f *os.File, end int64) (int64, error) {
	buf := make([]byte, 4096)
	for at := end - 1; at > 0; { // behind at is the record's own newline, or its end
		n := min(at, int64(len(buf)))
		if _, err := f.ReadAt(buf[:n], at-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return at - n + int64(i) + 1, nil
		}
		at -= n
	}
	return 0, nil
}

func endsLine(f *os.File, start, end int64) (bool, error) {
	head := make([]byte, min(headLength, end-start))
	if _, err := f.ReadAt(head, start); err != nil {
		return false, err
	}
	e, err := parse(bytes.TrimSuffix(head, []byte{'\n'}))
	return err != nil || !e.Partial, nil // what is no record is a line of its own
}
