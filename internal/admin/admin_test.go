package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/berth-node/berth/internal/errdefs"
)

// serve starts a door on a socket in a folder of its own.
func serve(t *testing.T, b Backend) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(b, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Error("Serve:", err)
		}
		<-s.Done()
	})
	if _, err := Listen(socket); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a second daemon on the same socket: %v", err)
	}
	return NewClient(socket)
}

func TestArchivesGoThrough(t *testing.T) {
	image := Image{ID: "sha256:1", RepoTags: []string{"a:1"}, Size: 7}
	archive := strings.Repeat("archive", 1<<18)
	c := serve(t, Backend{
		Load: func(_ context.Context, r io.Reader, name string) ([]Image, error) {
			data, err := io.ReadAll(r)
			if err != nil || string(data) != archive || name != "a" {
				return nil, fmt.Errorf("%d bytes for %q came, %v", len(data), name, err)
			}
			return []Image{image}, nil
		},
		Save: func(_ context.Context, w io.Writer, refs []string) error {
			if !reflect.DeepEqual(refs, []string{"a:1", "b:1"}) {
				return fmt.Errorf("image %q: %w", refs, errdefs.ErrNotFound)
			}
			_, err := io.WriteString(w, archive)
			return err
		},
	})
	got, err := c.Load(t.Context(), strings.NewReader(archive), "a")
	if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], image) {
		t.Errorf("Load: %+v, %v", got, err)
	}
	var saved strings.Builder
	if err := c.Save(t.Context(), &saved, []string{"a:1", "b:1"}); err != nil || saved.String() != archive {
		t.Errorf("Save: %d bytes, %v", saved.Len(), err)
	}
	if err := c.Save(t.Context(), io.Discard, []string{"c"}); err == nil || !strings.Contains(err.Error(), `image ["c"]`) {
		t.Errorf("Save of what is not there: %v", err)
	}
}

func TestASaveThatBreaksOffIsAnError(t *testing.T) {
	c := serve(t, Backend{Save: func(_ context.Context, w io.Writer, _ []string) error {
		_, _ = w.Write(make([]byte, 4<<20))
		return errors.New("disk failed")
	}})
	if err := c.Save(t.Context(), io.Discard, nil); err == nil {
		t.Error("half an archive passed for a whole one")
	}
}

func TestPullTells(t *testing.T) {
	c := serve(t, Backend{Pull: func(_ context.Context, ref string, creds Credentials, tell func(string)) (Image, error) {
		tell("one layer of two")
		if creds.Password != "secret" {
			return Image{}, fmt.Errorf("%s: %w", ref, errdefs.ErrPermissionDenied)
		}
		return Image{ID: "sha256:2"}, nil
	}})
	var told []string
	image, err := c.Pull(t.Context(), "b", Credentials{Username: "u", Password: "secret"}, func(s string) { told = append(told, s) })
	if err != nil || image.ID != "sha256:2" || !reflect.DeepEqual(told, []string{"one layer of two"}) {
		t.Errorf("Pull: %+v, %v, told %q", image, err, told)
	}
	if _, err := c.Pull(t.Context(), "b", Credentials{}, nil); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("Pull without credentials: %v", err)
	}
}

func TestDrainStopsTheDaemonOnlyWhenDone(t *testing.T) {
	stopped := make(chan struct{}, 1)
	fail := true
	c := serve(t, Backend{
		Drain: func(_ context.Context, grace time.Duration, _ func(string)) error {
			if grace != 3*time.Second {
				return fmt.Errorf("grace %s", grace)
			}
			if fail {
				return errors.New("pod p cannot be stopped")
			}
			return nil
		},
		Stop: func() { stopped <- struct{}{} },
	})
	if err := c.Drain(t.Context(), 3*time.Second, nil); err == nil || len(stopped) > 0 {
		t.Errorf("failed drain: %v, stopped %d", err, len(stopped))
	}
	fail = false
	if err := c.Drain(t.Context(), 3*time.Second, nil); err != nil {
		t.Error(err)
	}
	<-stopped
}

// The daemon ends when the server is done: the answer to who ended it must be out by then.
func TestDoneWaitsForWhatIsUnderWay(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	began, goOn, answered := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	b := Backend{Status: func(context.Context) Status {
		close(began)
		<-goOn
		return Status{Version: "1"}
	}}
	go func() {
		_, err := NewClient(socket).Status(context.Background())
		answered <- err
	}()
	s := NewServer(b, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	<-began
	s.Close()
	select {
	case <-s.Done():
		t.Error("it is done while an answer is under way")
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	<-s.Done()
}

// The call for an upgrade outlives the server's end, since it is answered after that; others do not.
func TestUpgradeOutlivesTheHandOver(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	pulling := make(chan struct{})
	var s *Server
	b := Backend{
		Pull: func(ctx context.Context, _ string, _ Credentials, _ func(string)) (Image, error) {
			close(pulling)
			<-ctx.Done()
			return Image{}, ctx.Err()
		},
		Upgrade: func(ctx context.Context, program string, tell func(string)) error {
			<-pulling
			tell("begun with " + program)
			s.HandOver(ctx)
			if _, err := NewClient(socket).Status(ctx); err == nil {
				t.Error("a call is taken after the hand-over")
			}
			return ctx.Err()
		},
	}
	s = NewServer(b, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	pulled := make(chan error, 1)
	go func() {
		_, err := NewClient(socket).Pull(context.Background(), "a", Credentials{}, nil)
		pulled <- err
	}()
	var told []string
	if err := NewClient(socket).Upgrade(t.Context(), "/new", func(s string) { told = append(told, s) }); err != nil {
		t.Errorf("Upgrade: %v", err)
	}
	if !reflect.DeepEqual(told, []string{"begun with /new"}) {
		t.Errorf("told %q", told)
	}
	if err := <-pulled; err == nil {
		t.Error("the pull went on")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	<-s.Done()
}

func TestNoDaemon(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "none.sock")).Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no daemon answers") {
		t.Errorf("Status: %v", err)
	}
}
