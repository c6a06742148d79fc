package nri

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/containerd/nri/pkg/log"
)

// The library has one logger for the whole process, which it reads without a lock: it is set once, and passes on to the
// logger of whoever called Open last.
var (
	libraryLog  logger
	installOnce sync.Once
)

func logTo(l *slog.Logger) {
	libraryLog.to.Store(l)
	installOnce.Do(func() { log.Set(&libraryLog) })
}

// A logger writes the library's messages. What it calls information is chatter about its own steps.
type logger struct{ to atomic.Pointer[slog.Logger] }

func (l *logger) Debugf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelDebug, format, args)
}

func (l *logger) Infof(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelDebug, format, args)
}

func (l *logger) Warnf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelWarn, format, args)
}

func (l *logger) Errorf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelError, format, args)
}

func (l *logger) write(ctx context.Context, level slog.Level, format string, args []any) {
	if to := l.to.Load(); to.Enabled(ctx, level) {
		to.Log(ctx, level, "NRI: "+fmt.Sprintf(format, args...))
	}
}
