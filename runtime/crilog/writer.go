package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-node/berth/internal/spawn"
	"golang.org/x/sys/unix"
)

// A Writer appends the output of one container to its log. Its methods may be called at the same time.
//
// Writing never fails for the caller, who has a workload to keep going: what cannot be written (a full disk) is dropped
// and counted, in whole records, and the next record is tried again. Where there is room again, the log goes on with a
// record that says how much is missing.
type Writer struct {
	// Lost, if it is set before the first Write, is told when output begins to be lost, with the reason, and with nil when
	// the log goes on. It is called with the writer locked.
	Lost func(why error)

	path    string
	maxLine int

	mu      sync.Mutex
	file    *os.File // nil if path is empty, after Close, and until the file can be opened
	closed  bool
	partial [2][]byte
	skip    [2]int // how much may be dropped of a line whose beginning is lost; 0 at the beginning of a line
	out     []byte // the batch that is being made; nil between batches, so that an idle container holds no memory
	// Not guarded by mu, which is held during a write: on a mount that hangs that is long.
	written, dropped atomic.Uint64

	// open says of which streams the last record in the file is part of a line whose end has not come; before is the same
	// without the batch. missing is what was dropped since the last good write, and why; notice the bytes at the begin of
	// the batch that say so; torn, that half a record is at the end of the file.
	open, before [2]bool
	missing      loss
	notice       int
	torn         bool
}

type loss struct {
	records, bytes int
	why            error
}

// maxIdleBatch bounds the buffers that are kept, in bytes. A read of nothing but newlines makes one of megabytes.
const maxIdleBatch = 256 << 10

// batches keeps the buffers of all writers.
var batches = sync.Pool{New: func() any { b := make([]byte, 0, 128<<10); return &b }}

// Open opens or makes the log at path, mode 0640. A record that a crash has torn at the end of an existing log is cut
// off. An empty path discards everything. maxLine bounds the content of one record in bytes; 0 is DefaultMaxLine.
func Open(path string, maxLine int) (*Writer, error) {
	if maxLine <= 0 {
		maxLine = DefaultMaxLine
	}
	w := &Writer{path: path, maxLine: maxLine}
	if path == "" {
		return w, nil
	}
	f, err := openAppend(path)
	if err != nil {
		return nil, err
	}
	if err := cutTorn(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("repair log %s: %w", path, err)
	}
	w.file = f
	return w, nil
}

// Resync is called on a new Writer for a stream of which the one before had read more than it wrote when it died: what
// comes next of it may be the end of a line whose beginning is lost. It is dropped, as is what else of a long line follows,
// within maxResync; and if the log has the beginning of that line, it ends there, as of the time now.
func (w *Writer) Resync(stream Stream, now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	w.skip[stream] = maxResync
	open, err := endsWithin(w.file, stream)
	if err != nil || !open {
		return err
	}
	w.begin()
	w.record(stream, now, 'F', nil)
	w.flush()
	return nil
}

// maxResync bounds what is dropped in search of the end of a line, in bytes: there are streams without any.
const maxResync = 16 << 10

// endsWithin says whether the last record of stream, if it is among the last of f, is a piece of a line that goes on.
func endsWithin(f *os.File, stream Stream) (bool, error) {
	const window = 128 << 10 // some records of the other stream may have come after
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	buf := make([]byte, min(size, window))
	if _, err := f.ReadAt(buf, size-int64(len(buf))); err != nil {
		return false, err
	}
	lines := bytes.Split(bytes.TrimSuffix(buf, []byte{'\n'}), []byte{'\n'})
	for _, line := range slices.Backward(lines) {
		if e, err := parse(line); err == nil && e.Stream == stream {
			return e.Partial, nil
		}
	}
	return false, nil
}

// OpenLater is Open for a log whose file cannot be opened at the moment: that is tried with every write.
func OpenLater(path string, maxLine int) *Writer {
	if maxLine <= 0 {
		maxLine = DefaultMaxLine
	}
	return &Writer{path: path, maxLine: maxLine}
}

// openAppend opens a log. A pod that may write to the folders of logs (they are mounted into collectors of logs) could put a
// symbolic link in a log's place, and have its output written to any file of the node: no link is followed at the end of
// the path, and what is no regular file is not opened for writing (a FIFO would block nobody, but it is no log).
func openAppend(path string) (*os.File, error) {
	// Read access is for cutTorn. O_APPEND, so that whoever truncates the file does not leave a hole.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0o640)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("log %s is no file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return spawn.Withhold(f), nil // its mount may come to hang
}

// cutTorn truncates f behind its last newline. A writer that is killed in the middle of a write leaves half a record.
func cutTorn(f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return err
	}
	buf := make([]byte, 4096)
	for end := size; end > 0; {
		n := min(end, int64(len(buf)))
		if _, err := f.ReadAt(buf[:n], end-n); err != nil {
			return err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			if keep := end - n + int64(i) + 1; keep < size {
				return f.Truncate(keep)
			}
			return nil
		}
		end -= n
	}
	return f.Truncate(0)
}

// Write adds what stream gave at the time now. A line that has no end yet is held back until it has one, is as long as
// a record may be, or the log is closed.
func (w *Writer) Write(stream Stream, now time.Time, data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.path == "" {
		return
	}
	data = w.resync(stream, data)
	w.begin()
	for len(data) > 0 {
		line, rest, full := bytes.Cut(data, []byte{'\n'})
		data = rest
		if full {
			w.line(stream, now, line)
			continue
		}
		w.hold(stream, now, line)
	}
	w.flush()
}

// resync takes away what belongs to a line whose beginning is lost.
func (w *Writer) resync(stream Stream, data []byte) []byte {
	if w.skip[stream] == 0 {
		return data
	}
	n := min(len(data), w.skip[stream])
	if i := bytes.IndexByte(data[:n], '\n'); i >= 0 {
		n, w.skip[stream] = i+1, 0
	} else {
		w.skip[stream] -= n
	}
	w.dropped.Add(uint64(n))
	return data[n:]
}

// Settled says whether all that was written of stream is in the log; otherwise a beginning of a line is held back.
func (w *Writer) Settled(stream Stream) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.partial[stream]) == 0 && w.skip[stream] == 0
}

// line adds the end of a line to the batch.
func (w *Writer) line(stream Stream, now time.Time, line []byte) {
	if held := w.partial[stream]; len(held) > 0 {
		line = append(held, line...)
		w.partial[stream] = nil
	}
	for len(line) > w.maxLine {
		w.record(stream, now, 'P', line[:w.maxLine])
		line = line[w.maxLine:]
	}
	w.record(stream, now, 'F', line)
}

// hold keeps the beginning of a line; what is more than a record holds goes into the batch.
func (w *Writer) hold(stream Stream, now time.Time, piece []byte) {
	held := append(w.partial[stream], piece...)
	rest := held
	// A line that is exactly as long as a record waits: its newline may be next, and then it is whole.
	for len(rest) > w.maxLine {
		w.record(stream, now, 'P', rest[:w.maxLine])
		rest = rest[w.maxLine:]
	}
	if len(rest) < len(held) {
		rest = bytes.Clone(rest) // lets go of the long buffer
	}
	w.partial[stream] = rest
}

func (w *Writer) record(stream Stream, now time.Time, tag byte, content []byte) {
	w.out = now.UTC().AppendFormat(w.out, timeFormat)
	w.out = append(w.out, ' ')
	w.out = append(w.out, stream.String()...)
	w.out = append(w.out, ' ', tag, ' ')
	w.out = append(w.out, content...)
	w.out = append(w.out, '\n')
	w.open[stream] = tag == 'P'
}

// begin begins a batch. After a loss the first thing in it is to say so.
func (w *Writer) begin() {
	w.out = (*batches.Get().(*[]byte))[:0]
	w.before = w.open
	defer func() { w.notice = len(w.out) }()
	if w.torn {
		w.out = append(w.out, '\n')
	}
	if w.missing.records == 0 {
		return
	}
	now := time.Now()
	for stream, open := range w.open {
		if open { // or what comes next would be taken for the end of that line
			w.record(Stream(stream), now, 'F', nil)
		}
	}
	w.record(Stderr, now, 'F', fmt.Appendf(nil, "berth: %d records of the output (%d bytes) are missing here: %v",
		w.missing.records, w.missing.bytes, w.missing.why))
}

// flush writes the batch with one write(2).
func (w *Writer) flush() {
	batch := w.out
	w.out = nil
	if cap(batch) <= maxIdleBatch {
		defer batches.Put(&batch)
	}
	if len(batch) == 0 {
		return
	}
	n, err := w.append(batch)
	w.written.Add(uint64(n))
	if err != nil {
		w.lose(batch, n, err)
		return
	}
	w.torn = false
	if w.missing.records > 0 {
		w.missing = loss{}
		w.tell(nil)
	}
}

// append returns how many bytes of whole records found room.
func (w *Writer) append(batch []byte) (int, error) {
	if w.file == nil {
		f, err := openAppend(w.path)
		if err != nil {
			return 0, err
		}
		w.file = f
	}
	n, err := w.file.Write(batch)
	if err != nil {
		n = w.trim(batch, n)
	}
	return n, err
}

// lose notes that of a batch only n bytes were written.
func (w *Writer) lose(batch []byte, n int, why error) {
	first := w.missing.records == 0
	if n >= w.notice {
		w.missing = loss{} // of what was lost before, the log says so now
	}
	lost := batch[max(n, w.notice):] // the notice itself is not lost: it comes again
	if len(lost) == 0 {
		return
	}
	w.dropped.Add(uint64(len(lost)))
	w.missing.records += bytes.Count(lost, []byte{'\n'})
	w.missing.bytes += len(lost)
	w.missing.why = reason(why)
	w.open = w.before
	for record := range bytes.Lines(batch[:n]) {
		if f := bytes.SplitN(record, []byte{' '}, 4); len(f) == 4 {
			for _, stream := range []Stream{Stdout, Stderr} {
				if string(f[1]) == stream.String() {
					w.open[stream] = f[2][0] == 'P'
				}
			}
		}
	}
	if first {
		w.tell(why)
	}
}

// reason is the error without what the reader of the log knows: its path.
func reason(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

func (w *Writer) tell(why error) {
	if w.Lost != nil {
		w.Lost(why)
	}
}

// trim takes back the torn end of a batch of which only n bytes found room, and returns what is left of it.
func (w *Writer) trim(batch []byte, n int) int {
	whole := bytes.LastIndexByte(batch[:n], '\n') + 1
	if whole == n {
		return n
	}
	size, err := w.file.Seek(0, io.SeekEnd)
	if err == nil {
		err = w.file.Truncate(size - int64(n-whole))
	}
	w.torn = err != nil // the reader skips the record
	return whole
}

// Reopen goes on with the file at the writer's path, which is made if it is not there: the way to rotate is to rename
// the log and then to reopen. On an error the old file stays in use.
func (w *Writer) Reopen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.path == "" {
		return nil
	}
	f, err := openAppend(w.path)
	if err != nil {
		return err
	}
	old := w.file
	w.file, w.torn = f, false
	if old == nil {
		return nil
	}
	return old.Close()
}

// Close writes what is held back of unfinished lines, as of the time now, and closes the log. Later writes are ignored.
func (w *Writer) Close(now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.path == "" {
		return nil
	}
	w.closed = true
	w.begin()
	for stream, held := range w.partial {
		if len(held) > 0 {
			w.record(Stream(stream), now, 'P', held)
		}
	}
	w.flush()
	w.partial = [2][]byte{}
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// A Handover is what a Writer has in hand besides its file.
type Handover struct {
	// Partial are the beginnings of lines, by stream.
	Partial [2][]byte `json:"partial"`
	// Skip is what Resync has asked for and is not done.
	Skip    [2]int `json:"skip"`
	Written uint64 `json:"written"`
	Dropped uint64 `json:"dropped"`
	// Open and Torn are what the end of the file is like. MissingRecords, MissingBytes and Why are a loss that the log does
	// not say yet.
	Open           [2]bool `json:"open,omitzero"`
	Torn           bool    `json:"torn,omitempty"`
	MissingRecords int     `json:"missingRecords,omitempty"`
	MissingBytes   int     `json:"missingBytes,omitempty"`
	Why            string  `json:"why,omitempty"`
	Closed         bool    `json:"closed,omitempty"`
}

// HandOver returns what another program needs to go on with the log by Resume: what is in hand, and the file, which stays
// w's; nil if there is none. Nobody may write until then. The file itself is to be passed on: to close it may take for ever.
func (w *Writer) HandOver() (Handover, *os.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := Handover{
		Partial: w.partial, Skip: w.skip, Written: w.written.Load(), Dropped: w.dropped.Load(),
		Open: w.open, Torn: w.torn, Closed: w.closed, MissingRecords: w.missing.records, MissingBytes: w.missing.bytes,
	}
	if w.missing.why != nil {
		h.Why = w.missing.why.Error()
	}
	return h, w.file
}

// Resume goes on where another Writer with the same path and maxLine has handed over. It takes over file, which may have
// been renamed since it was opened, and is nil if there was none.
func Resume(path string, maxLine int, file *os.File, h Handover) *Writer {
	if maxLine <= 0 {
		maxLine = DefaultMaxLine
	}
	if file != nil {
		file = spawn.Withhold(file) // a program before may not have known of that
	}
	w := &Writer{
		path: path, maxLine: maxLine, file: file, partial: h.Partial, skip: h.Skip,
		open: h.Open, torn: h.Torn, closed: h.Closed, missing: loss{h.MissingRecords, h.MissingBytes, errors.New(h.Why)},
	}
	w.written.Store(h.Written)
	w.dropped.Store(h.Dropped)
	return w
}

// Counts returns how many bytes were written, and dropped because they could not be, both with the heads of records. It
// waits for nothing.
func (w *Writer) Counts() (written, dropped uint64) { return w.written.Load(), w.dropped.Load() }
