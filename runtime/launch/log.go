package launch

import (
	"fmt"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// logLimit bounds what is kept of libcontainer's log, in bytes.
const logLimit = 8 << 10

// A logBuffer keeps the end of what libcontainer and its init wrote to the log. It is a logrus hook and formatter in
// one, so that a line costs nothing but its text.
type logBuffer struct {
	mu    sync.Mutex
	lines []string
	size  int
	cut   bool
}

// captureLog leads libcontainer's global log into a buffer. Warnings and worse are kept: what the level below says is
// of use to libcontainer's developers only.
func captureLog() *logBuffer {
	b := new(logBuffer)
	logrus.SetLevel(logrus.WarnLevel)
	logrus.SetFormatter(plainFormatter{})
	logrus.SetOutput(b)
	return b
}

// plainFormatter writes the message and its fields, without time and level.
type plainFormatter struct{}

func (plainFormatter) Format(e *logrus.Entry) ([]byte, error) {
	var text strings.Builder
	text.WriteString(e.Message)
	if err, ok := e.Data[logrus.ErrorKey]; ok {
		fmt.Fprintf(&text, ": %v", err)
	}
	return []byte(text.String()), nil
}

// Write takes one log line. It never fails.
func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	text := strings.TrimSpace(string(line))
	if isReaped(text) {
		return len(line), nil
	}
	if len(text) > logLimit {
		text, b.cut = text[len(text)-logLimit:], true
	}
	b.lines = append(b.lines, text)
	b.size += len(text)
	for b.size > logLimit { // the end is closest to the failure
		b.size -= len(b.lines[0])
		b.lines, b.cut = b.lines[1:], true
	}
	return len(line), nil
}

// isReaped reports whether a line only says that a process could not be ended after it had failed, since it had ended: who reads the
// error knows that.
func isReaped(text string) bool {
	return strings.HasPrefix(text, "unable to terminate ") && strings.HasSuffix(text, unix.ECHILD.Error())
}

// reset forgets what a job that succeeded has logged.
func (b *logBuffer) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines, b.size, b.cut = nil, 0, false
}

// explain returns the text of err with the log that led to it.
func (b *logBuffer) explain(err error) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lines) == 0 {
		return err.Error()
	}
	log := strings.Join(b.lines, "; ")
	if b.cut {
		log = "…; " + log
	}
	return fmt.Sprintf("%v (log: %s)", err, log)
}
