package pull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	credential "k8s.io/kubelet/pkg/apis/credentialprovider/v1"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"sigs.k8s.io/yaml"
)

const (
	pluginTimeout = time.Minute
	// maxAnswer is how much a plugin may print, in bytes.
	maxAnswer = 1 << 20
)

// pluginVersions are those of the protocol that are spoken; they differ in nothing that is used here.
var pluginVersions = []string{"credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1", "credentialprovider.kubelet.k8s.io/v1alpha1"}

// Plugins are programs that know credentials for images, kubelet credential provider plugins.
type Plugins struct {
	dir       string
	providers []*provider
	now       func() time.Time
}

// A provider is one of them, as a CredentialProviderConfig declares it.
type provider struct {
	Name                 string   `json:"name"`
	MatchImages          []string `json:"matchImages"`
	DefaultCacheDuration string   `json:"defaultCacheDuration"`
	APIVersion           string   `json:"apiVersion"`
	Args                 []string `json:"args"`
	Env                  []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`

	keep  time.Duration
	calls singleflight.Group
	mu    sync.Mutex
	cache map[string]answer
}

type answer struct {
	config credentialprovider.DockerConfig
	until  time.Time
}

// LoadPlugins reads a CredentialProviderConfig (kubelet.config.k8s.io/v1). The programs are those in dir. Errors name the field.
func LoadPlugins(file, dir string, now func() time.Time) (*Plugins, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var config struct {
		Kind       string      `json:"kind"`
		APIVersion string      `json:"apiVersion"`
		Providers  []*provider `json:"providers"`
	}
	if err := yaml.UnmarshalStrict(data, &config); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if config.Kind != "CredentialProviderConfig" || !strings.HasPrefix(config.APIVersion, "kubelet.config.k8s.io/v1") {
		return nil, fmt.Errorf("%s: it is a %s of %s, want a CredentialProviderConfig of kubelet.config.k8s.io/v1", file, config.Kind, config.APIVersion)
	}
	var faults []error
	for i, p := range config.Providers {
		if err := p.check(dir); err != nil {
			faults = append(faults, fmt.Errorf("%s: providers[%d]: %w", file, i, err))
		}
	}
	return &Plugins{dir: dir, providers: config.Providers, now: now}, errors.Join(faults...)
}

func (p *provider) check(dir string) error {
	p.cache = map[string]answer{}
	var faults []error
	if p.Name == "" || p.Name != filepath.Base(p.Name) || strings.HasPrefix(p.Name, ".") {
		faults = append(faults, fmt.Errorf("name: %q is not that of a program", p.Name))
	} else if _, err := exec.LookPath(filepath.Join(dir, p.Name)); err != nil {
		faults = append(faults, fmt.Errorf("name: %w", err))
	}
	if len(p.MatchImages) == 0 {
		faults = append(faults, errors.New("matchImages: at least one is required"))
	}
	for _, pattern := range p.MatchImages {
		if _, err := credentialprovider.ParseSchemelessURL(pattern); err != nil {
			faults = append(faults, fmt.Errorf("matchImages: %q: %w", pattern, err))
		}
	}
	if !slices.Contains(pluginVersions, p.APIVersion) {
		faults = append(faults, fmt.Errorf("apiVersion: %q is none of %s", p.APIVersion, strings.Join(pluginVersions, ", ")))
	}
	var err error
	if p.keep, err = time.ParseDuration(p.DefaultCacheDuration); err != nil || p.keep < 0 {
		faults = append(faults, fmt.Errorf("defaultCacheDuration: %q is no duration that is not negative", p.DefaultCacheDuration))
	}
	return errors.Join(faults...)
}

// lookup returns what the plugins that are for this repository know. A plugin that fails does not keep the others from being asked.
func (ps *Plugins) lookup(ctx context.Context, repository string) ([]credentialprovider.TrackedAuthConfig, error) {
	ring := &credentialprovider.BasicDockerKeyring{}
	var faults []error
	for _, p := range ps.providers {
		if !slices.ContainsFunc(p.MatchImages, func(pattern string) bool {
			fits, err := credentialprovider.URLsMatchStr(pattern, repository)
			return err == nil && fits
		}) {
			continue
		}
		config, err := p.ask(ctx, ps.dir, repository, ps.now)
		if err != nil {
			faults = append(faults, fmt.Errorf("credential provider plugin %s: %w", p.Name, err))
			continue
		}
		ring.Add(nil, config)
	}
	keys, _ := ring.Lookup(repository)
	return keys, errors.Join(faults...)
}

// ask returns what the plugin says, or has said.
func (p *provider) ask(ctx context.Context, dir, repository string, now func() time.Time) (credentialprovider.DockerConfig, error) {
	registry, _, _ := strings.Cut(repository, "/")
	p.mu.Lock()
	for _, key := range []string{"image " + repository, "registry " + registry, "global"} {
		if a, ok := p.cache[key]; ok && now().Before(a.until) {
			p.mu.Unlock()
			return a.config, nil
		}
	}
	p.mu.Unlock()
	// Whoever asks for the same meanwhile gets the same answer; the first one's giving up is not theirs.
	result := p.calls.DoChan(repository, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pluginTimeout)
		defer cancel()
		response, err := p.execute(ctx, dir, repository)
		if err != nil {
			return nil, err
		}
		config := credentialprovider.DockerConfig{}
		for pattern, auth := range response.Auth {
			config[pattern] = credentialprovider.DockerConfigEntry{Username: auth.Username, Password: auth.Password}
		}
		key, ok := map[credential.PluginCacheKeyType]string{credential.ImagePluginCacheKeyType: "image " + repository,
			credential.RegistryPluginCacheKeyType: "registry " + registry, credential.GlobalPluginCacheKeyType: "global"}[response.CacheKeyType]
		if !ok {
			return nil, fmt.Errorf("cacheKeyType %q is none of Image, Registry and Global", response.CacheKeyType)
		}
		keep := p.keep
		if response.CacheDuration != nil {
			keep = response.CacheDuration.Duration
		}
		p.remember(key, answer{config, now().Add(keep)}, now())
		return config, nil
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(credentialprovider.DockerConfig), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *provider) remember(key string, a answer, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, old := range p.cache {
		if !now.Before(old.until) {
			delete(p.cache, k)
		}
	}
	if now.Before(a.until) {
		p.cache[key] = a
	}
}

// execute runs the program once.
func (p *provider) execute(ctx context.Context, dir, repository string) (*credential.CredentialProviderResponse, error) {
	request := credential.CredentialProviderRequest{Image: repository}
	request.Kind, request.APIVersion = "CredentialProviderRequest", p.APIVersion
	input, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	var said, complained bounded
	cmd := exec.CommandContext(ctx, filepath.Join(dir, p.Name), p.Args...)
	cmd.Env = os.Environ()
	for _, e := range p.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &said, &complained
	cmd.WaitDelay = time.Second // a child of it may hold the pipes
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(complained.String()))
	}
	var response credential.CredentialProviderResponse
	if err := json.Unmarshal(said.Bytes(), &response); err != nil {
		return nil, errors.New("what it printed is no CredentialProviderResponse in JSON") // its text is secret
	}
	if response.Kind != "CredentialProviderResponse" || response.APIVersion != p.APIVersion {
		return nil, fmt.Errorf("it answered with a %s of %s, want a CredentialProviderResponse of %s", response.Kind, response.APIVersion, p.APIVersion)
	}
	return &response, nil
}

// bounded keeps what comes first.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxAnswer - b.Len(); len(p) > room {
		b.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}
