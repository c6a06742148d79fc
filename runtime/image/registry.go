package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/berth-node/berth/internal/conffile"
	"github.com/berth-node/berth/internal/errdefs"
)

// blobs opens a blob, wherever images come from. Its content is to be verified by whoever reads it.
type blobs func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)

// A registry serves the images of one repository to one pull. The hosts that stand for it, mirrors first, follow from
// the configuration at the time of the pull.
type registry struct {
	name        name
	creds       credentials
	hostsDirs   []string
	watch       *stallWatch
	readTimeout time.Duration // of one read in the middle of a blob
	manners     *manners
	log         *log.Entry

	mu         sync.Mutex
	transports []*http.Transport
	resolver   remotes.Resolver
	login      int  // counts the resolvers, each of which has the tokens that it fetched
	proven     bool // the present one has got a blob
	mirrors    bool // there are hosts before the last one
	direct     bool // only the last one is asked any more
}

func (s *Store) newRegistry(n name, auth *Auth, watch *stallWatch) (*registry, error) {
	creds, err := newCredentials(auth, n.host)
	if err != nil {
		return nil, err
	}
	r := &registry{
		name: n, creds: creds, hostsDirs: s.cfg.HostsDirs, watch: watch, readTimeout: s.cfg.ReadTimeout,
		manners: &manners{base: s.cfg.RetryDelay, hosts: map[string]*hostManners{}},
		log:     bridge(s.log.With("image", n.String())),
	}
	r.resolver = r.newResolver()
	return r, nil
}

// newResolver returns a resolver with connections and tokens of its own.
func (r *registry) newResolver() remotes.Resolver {
	configured := config.ConfigureHosts(r.context(context.Background()), config.HostOptions{
		HostDir:      hostDirs(r.hostsDirs),
		Credentials:  r.creds.forHost,
		UpdateClient: r.adoptClient,
	})
	// One set of hosts for the whole pull: it has the connections, and the tokens that were fetched.
	hosts := sync.OnceValues(func() ([]docker.RegistryHost, error) {
		hosts, err := configured(r.name.host)
		if err == nil {
			r.creds.apply(hosts)
			hosts = r.choose(hosts)
		}
		return hosts, err
	})
	return docker.NewResolver(docker.ResolverOptions{
		Headers: http.Header{"User-Agent": {"berth"}},
		Hosts:   func(string) ([]docker.RegistryHost, error) { return hosts() },
	})
}

// choose returns the hosts to ask, and notes which is the last resort.
func (r *registry) choose(hosts []docker.RegistryHost) []docker.RegistryHost {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(hosts) == 0 {
		return nil
	}
	last := hosts[len(hosts)-1]
	r.manners.lastResort(last.Host)
	r.mirrors = slices.ContainsFunc(hosts, func(h docker.RegistryHost) bool { return h.Host != last.Host })
	if r.direct {
		hosts = []docker.RegistryHost{last}
	}
	return hosts
}

// withoutMirrors makes the pull go on with the last host alone, and reports whether that is a change. It is for mirrors
// that answer, but with what is of no use.
func (r *registry) withoutMirrors() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.mirrors || r.direct {
		return false
	}
	r.direct = true
	r.begin()
	return true
}

// loginAgain forgets all tokens, if the login is still the present one, and reports whether a request that was refused is
// to be sent again. A login that has never got anything is not repeated.
func (r *registry) loginAgain(login int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if login != r.login {
		return true // it was repeated meanwhile
	}
	if !r.proven {
		return false
	}
	r.begin()
	return true
}

// begin takes a new resolver; r.mu is held.
func (r *registry) begin() {
	r.resolver, r.proven = r.newResolver(), false
	r.login++
}

// proved notes that a login got something.
func (r *registry) proved(login int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.proven = r.proven || login == r.login
}

// fetcher returns what fetches blobs, and the login that it has.
func (r *registry) fetcher(ctx context.Context) (remotes.Fetcher, int, error) {
	r.mu.Lock()
	resolver, login := r.resolver, r.login
	r.mu.Unlock()
	f, err := resolver.Fetcher(ctx, r.name.String())
	return f, login, err
}

// hostDirs looks a host up in several folders.
func hostDirs(roots []string) func(string) (string, error) {
	return func(host string) (string, error) {
		for _, root := range roots {
			dir, err := config.HostDirFromRoot(root)(host)
			if err == nil {
				err = checkHostsFile(filepath.Join(dir, "hosts.toml"))
			}
			if err == nil || !cerrdefs.IsNotFound(err) {
				return dir, err
			}
		}
		return "", cerrdefs.ErrNotFound
	}
}

// checkHostsFile refuses what the library would wait for, or read without end. A folder may have none.
func checkHostsFile(path string) error {
	if err := conffile.Check(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("registry configuration: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// adoptClient makes a client polite, and remembers its transport, to close its connections in the end.
func (r *registry) adoptClient(c *http.Client) error {
	if t, ok := c.Transport.(*http.Transport); ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		t.MaxIdleConnsPerHost = 8 // layers come side by side
		r.transports = append(r.transports, t)
		c.Transport = polite{base: t, manners: r.manners, watch: r.watch}
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
	r.mu.Lock()
	resolver := r.resolver
	r.mu.Unlock()
	_, desc, err := resolver.Resolve(r.context(ctx), r.name.String())
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

// open is the blobs of the registry. Nothing is sent before the first Read.
func (r *registry) open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	// Addresses that an image names itself could lead to any machine that the node can reach.
	desc.URLs = nil
	return &blobReader{reg: r, ctx: ctx, desc: desc}, nil
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
