package image

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/berth-node/berth/internal/errdefs"
)

// blobs opens a blob, wherever images come from. Its content is to be verified by whoever reads it.
type blobs func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)

// A registry serves the images of one repository to one pull. The hosts that stand for it, mirrors first, follow from
// the configuration at the time of the pull.
type registry struct {
	name     name
	resolver remotes.Resolver
	watch    *stallWatch
	log      *log.Entry

	mu         sync.Mutex
	transports []*http.Transport
}

func (s *Store) newRegistry(n name, auth *Auth, watch *stallWatch) (*registry, error) {
	creds, err := newCredentials(auth, n.host)
	if err != nil {
		return nil, err
	}
	r := &registry{name: n, watch: watch, log: bridge(s.log.With("image", n.String()))}
	configured := config.ConfigureHosts(r.context(context.Background()), config.HostOptions{
		HostDir:      hostDirs(s.cfg.HostsDirs),
		Credentials:  creds.forHost,
		UpdateClient: r.adoptClient,
	})
	var once sync.Once
	var hosts []docker.RegistryHost
	var hostsErr error
	r.resolver = docker.NewResolver(docker.ResolverOptions{
		Headers: http.Header{"User-Agent": {"berth"}},
		// One set of hosts for the whole pull: it has the connections, and the tokens that were fetched.
		Hosts: func(host string) ([]docker.RegistryHost, error) {
			once.Do(func() {
				if hosts, hostsErr = configured(host); hostsErr == nil {
					creds.apply(hosts)
				}
			})
			return hosts, hostsErr
		},
	})
	return r, nil
}

// hostDirs looks a host up in several folders.
func hostDirs(roots []string) func(string) (string, error) {
	return func(host string) (string, error) {
		for _, root := range roots {
			dir, err := config.HostDirFromRoot(root)(host)
			if err == nil || !cerrdefs.IsNotFound(err) {
				return dir, err
			}
		}
		return "", cerrdefs.ErrNotFound
	}
}

// adoptClient remembers the transport of a client, to close its connections in the end.
func (r *registry) adoptClient(c *http.Client) error {
	if t, ok := c.Transport.(*http.Transport); ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		t.MaxIdleConnsPerHost = 8 // layers come side by side
		r.transports = append(r.transports, t)
	}
	return nil
}

// close ends the connections that are not in use.
func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.transports {
		t.CloseIdleConnections()
	}
}

// resolve asks what the name of the image stands for.
func (r *registry) resolve(ctx context.Context) (ocispec.Descriptor, error) {
	end := r.watch.wait()
	defer func() { end(true) }()
	_, desc, err := r.resolver.Resolve(r.context(ctx), r.name.String())
	if err != nil {
		return desc, err
	}
	if desc.MediaType == images.MediaTypeDockerSchema1Manifest || desc.MediaType == mediaTypeSchema1Unsigned {
		return desc, errSchema1
	}
	if !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
		// Some registries call all of them "application/json". What it is, its content says; this says where to ask.
		desc.MediaType = ocispec.MediaTypeImageManifest
	}
	return desc, nil
}

const mediaTypeSchema1Unsigned = "application/vnd.docker.distribution.manifest.v1+json"

var errSchema1 = fmt.Errorf("the image has a manifest of docker's schema 1, which no current tool writes; push it again: %w",
	errdefs.ErrUnimplemented)

// open is the blobs of the registry.
func (r *registry) open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, err := r.resolver.Fetcher(ctx, r.name.String())
	if err != nil {
		return nil, err
	}
	// Addresses that an image names itself could lead to any machine that the node can reach.
	desc.URLs = nil
	rc, err := f.Fetch(r.context(ctx), desc)
	if err != nil {
		return nil, err
	}
	return watchedBody{rc, r.watch}, nil
}

// context returns ctx with a logger that hands what containerd's packages have to say to ours.
func (r *registry) context(ctx context.Context) context.Context { return log.WithLogger(ctx, r.log) }

// bridge returns a logger for containerd's packages. Of their messages the warnings matter: a hosts.toml that cannot be
// read is nowhere else to be seen.
func bridge(to *slog.Logger) *log.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.WarnLevel)
	l.AddHook(logHook{to})
	return logrus.NewEntry(l)
}

type logHook struct{ log *slog.Logger }

func (logHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h logHook) Fire(e *logrus.Entry) error {
	level := slog.LevelWarn
	if e.Level <= logrus.ErrorLevel {
		level = slog.LevelError
	}
	args := []any{}
	for k, v := range e.Data {
		args = append(args, k, fmt.Sprint(v))
	}
	h.log.Log(e.Context, level, "registry: "+e.Message, args...)
	return nil
}
