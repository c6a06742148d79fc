package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime"
	"github.com/berth-node/berth/runtime/crilog"
)

// A logQuery is what of a log is asked for, in the words of v1.PodLogOptions.
type logQuery struct {
	previous   bool
	timestamps bool
	limit      int64  // bytes; -1 is all
	stream     string // "" is both
	read       crilog.Options
}

func parseLogQuery(q url.Values, now time.Time) (logQuery, error) {
	l := logQuery{limit: -1, read: crilog.Options{Tail: -1}}
	var faults field.ErrorList
	boolean := func(key string) bool {
		v, err := strconv.ParseBool(q.Get(key))
		if err != nil && q.Get(key) != "" {
			faults = append(faults, field.Invalid(field.NewPath(key), q.Get(key), "must be true or false"))
		}
		return v
	}
	number := func(key string, least int64, set func(int64)) {
		if !q.Has(key) || q.Get(key) == "" {
			return
		}
		v, err := strconv.ParseInt(q.Get(key), 10, 64)
		if err != nil || v < least {
			faults = append(faults, field.Invalid(field.NewPath(key), q.Get(key), fmt.Sprintf("must be greater than or equal to %d", least)))
			return
		}
		set(v)
	}
	l.previous, l.timestamps, l.read.Follow = boolean("previous"), boolean("timestamps"), boolean("follow")
	number("tailLines", 0, func(n int64) { l.read.Tail = n })
	number("limitBytes", 1, func(n int64) { l.limit = n })
	number("sinceSeconds", 1, func(n int64) { l.read.Since = now.Add(-time.Duration(n) * time.Second) })
	if text := q.Get("sinceTime"); text != "" {
		t, err := time.Parse(time.RFC3339Nano, text)
		switch {
		case err != nil:
			faults = append(faults, field.Invalid(field.NewPath("sinceTime"), text, "must be a time of RFC 3339"))
		case q.Get("sinceSeconds") != "":
			faults = append(faults, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
		default:
			l.read.Since = t
		}
	}
	switch l.stream = q.Get("stream"); l.stream {
	case "", v1.LogStreamAll:
		l.stream = ""
	case v1.LogStreamStdout, v1.LogStreamStderr:
		if l.read.Tail >= 0 {
			faults = append(faults, field.Forbidden(field.NewPath(""), "`tailLines` and specific `stream` are mutually exclusive for now"))
		}
	default:
		faults = append(faults, field.NotSupported(field.NewPath("stream"), l.stream, []string{v1.LogStreamAll, v1.LogStreamStdout, v1.LogStreamStderr}))
	}
	if len(faults) > 0 {
		return l, apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, "", faults)
	}
	return l, nil
}

func (s *Server) handleLog(w http.ResponseWriter, r *http.Request) {
	pod, err := s.pod(r)
	if err != nil {
		fail(w, err)
		return
	}
	name, err := containerName(pod, r.URL.Query().Get("container"))
	if err != nil {
		fail(w, err)
		return
	}
	s.serveLog(w, r, pod, name)
}

func (s *Server) serveLog(w http.ResponseWriter, r *http.Request, pod *v1.Pod, name string) {
	query, err := parseLogQuery(r.URL.Query(), s.cfg.Now())
	if err != nil {
		fail(w, err)
		return
	}
	c, err := s.logged(r.Context(), pod, name, query.previous)
	if err != nil {
		fail(w, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if query.read.Follow {
		query.read.Ended = s.ended(ctx, c.ID)
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	out := newLogWriter(w, query)
	out.flush()
	err = crilog.Read(ctx, c.LogPath, query.read, out.write)
	if err != nil && ctx.Err() == nil && !errors.Is(err, errLogEnough) {
		_, _ = fmt.Fprintf(w, "\nunable to read the log: %v\n", err)
	}
}

// logged is the container whose log is asked for.
func (s *Server) logged(ctx context.Context, pod *v1.Pod, name string, previous bool) (runtime.Container, error) {
	id, err := s.cfg.Kubelet.ContainerID(pod.Namespace, pod.Name, name, previous)
	if err != nil {
		return runtime.Container{}, errBadRequest("%s", apiError(err).Status().Message)
	}
	c, err := s.cfg.Container(ctx, id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return c, errBadRequest("unable to retrieve container logs for berth://%s: it is removed", id)
	}
	if err == nil && c.LogPath == "" {
		err = errBadRequest("container %q in pod %q has no log", name, pod.Name)
	}
	return c, err
}

// ended is closed when the container has ended. Its pod is put up anew by then.
func (s *Server) ended(ctx context.Context, id string) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		w, err := s.cfg.Kubelet.Pods().Watch(0) // before the first look: nothing is missed
		for err == nil {
			c, gone := s.cfg.Container(ctx, id)
			if gone != nil || c.State == runtime.Exited {
				return
			}
			if _, err = w.Next(ctx); errors.Is(err, errdefs.ErrResourceExhausted) {
				w, err = s.cfg.Kubelet.Pods().Watch(0)
			}
		}
	}()
	return done
}

// errLogEnough ends the reading of a log.
var errLogEnough = errors.New("that is all that was asked for")

// A logWriter writes the content of a log's records.
type logWriter struct {
	w     io.Writer
	flush func()
	query logQuery
	left  int64 // bytes; negative is no limit
	inner [2]bool
}

func newLogWriter(w http.ResponseWriter, q logQuery) *logWriter {
	c := http.NewResponseController(w)
	return &logWriter{w: w, query: q, left: q.limit, flush: func() {
		if q.read.Follow {
			_ = c.Flush() // the client may have gone
		}
	}}
}

// write writes a record. A line in several records gets one time.
func (l *logWriter) write(e crilog.Entry) error {
	if l.query.stream != "" && l.query.stream != map[crilog.Stream]string{crilog.Stdout: v1.LogStreamStdout, crilog.Stderr: v1.LogStreamStderr}[e.Stream] {
		return nil
	}
	var line []byte
	if l.query.timestamps && !l.inner[e.Stream] {
		line = e.Time.AppendFormat(line, timestampFormat)
		line = append(line, ' ')
	}
	l.inner[e.Stream] = e.Partial
	line = append(line, e.Content...)
	if !e.Partial {
		line = append(line, '\n')
	}
	if l.left >= 0 {
		if int64(len(line)) > l.left {
			line = line[:l.left]
		}
		l.left -= int64(len(line))
	}
	if _, err := l.w.Write(line); err != nil {
		return err
	}
	l.flush()
	if l.left == 0 {
		return errLogEnough
	}
	return nil
}

// timestampFormat is that of upstream's logs: nine digits, so that columns stand.
const timestampFormat = "2006-01-02T15:04:05.000000000Z07:00"
