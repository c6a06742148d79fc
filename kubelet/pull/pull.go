// Package pull sees to it that the image of a container is on the node, and that the pod may have it: by the container's pull policy,
// with the pod's imagePullSecrets, or what credential provider plugins know, or what the node's own registry configuration says. When
// to try again is the caller's. Reasons, messages and events are upstream's (pkg/kubelet/images).
package pull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/util/parsers"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/image"
)

// Reasons why a container waits for its image.
const (
	ErrImagePull      = "ErrImagePull"
	ErrImageNeverPull = "ErrImageNeverPull"
	InvalidImageName  = "InvalidImageName"
	ImageInspectError = "ImageInspectError"
)

// A Failure is why an image is not there.
type Failure struct{ Reason, Message string }

// Error returns both, as upstream logs them.
func (f *Failure) Error() string { return f.Reason + ": " + f.Message }

// An Image is what a container can be made from.
type Image struct {
	ID string
	// UID is the user that the image names by number; Username the one that it names by name. It may name neither: that is root.
	UID      *int64
	Username string
}

// Config is what a Puller needs. All but Plugins is required.
type Config struct {
	// Get and Pull are those of image.Store.
	Get  func(ref string) (image.Image, error)
	Pull func(ctx context.Context, ref string, auth *image.Auth) (image.Image, error)
	// Dir is where it is kept with whose credentials images were pulled.
	Dir     string
	Plugins *Plugins
	Event   func(pod *v1.Pod, container *v1.Container, eventType, reason, message string)
	Now     func() time.Time
}

// A Puller may be used concurrently. Equal pulls at the same time are one for the registry: image.Store joins them.
type Puller struct {
	cfg    Config
	ledger ledger
}

// New returns a Puller; it makes cfg.Dir.
func New(cfg Config) (*Puller, error) {
	l, err := openLedger(cfg.Dir)
	return &Puller{cfg: cfg, ledger: l}, err
}

// Ensure returns when the image of the container is there, or why it is not. Secrets are those of the pod's imagePullSecrets that
// there are.
func (p *Puller) Ensure(ctx context.Context, pod *v1.Pod, c *v1.Container, secrets []*v1.Secret) (Image, *Failure) {
	event := func(eventType, reason, message string) { p.cfg.Event(pod, c, eventType, reason, message) }
	repository, ref, err := parse(c.Image)
	if err != nil {
		message := fmt.Sprintf("Failed to apply default image tag %q: %v", c.Image, err)
		event(v1.EventTypeWarning, "InspectFailed", message)
		return Image{}, &Failure{InvalidImageName, message}
	}
	found, failure := p.present(ref, c, event)
	if failure != nil {
		return Image{}, failure
	}
	if found == nil && c.ImagePullPolicy == v1.PullNever {
		return Image{}, never(c, event)
	}
	keys, doubt, err := p.credentials(ctx, repository, secrets)
	if err != nil {
		message := fmt.Sprintf("Failed to pull image %q: %v", c.Image, err)
		event(v1.EventTypeWarning, "Failed", message)
		return Image{}, &Failure{ErrImagePull, message}
	}
	if found != nil {
		if p.ledger.allows(found.ID, keys) {
			event(v1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", c.Image))
			return described(*found), nil
		}
		if c.ImagePullPolicy == v1.PullNever {
			return Image{}, never(c, event) // as if it were not there: who may not have it need not know
		}
	}
	return p.pull(ctx, ref, c, keys, doubt, event)
}

// parse returns the name of an image without its tag or digest, and with the tag that it has by default.
func parse(name string) (repository, ref string, err error) {
	repository, tag, digest, err := parsers.ParseImageName(name)
	if err != nil {
		return "", "", err
	}
	if digest == "" && tag != "" && !strings.HasSuffix(name, ":"+tag) {
		name += ":" + tag
	}
	return repository, name, nil
}

// present returns the image if it is there and the policy does not say that it is to be asked for anyway.
func (p *Puller) present(ref string, c *v1.Container, event func(_, _, _ string)) (*image.Image, *Failure) {
	if c.ImagePullPolicy == v1.PullAlways {
		return nil, nil
	}
	found, err := p.cfg.Get(ref)
	switch {
	case err == nil:
		return &found, nil
	case errors.Is(err, errdefs.ErrNotFound):
		return nil, nil
	}
	message := fmt.Sprintf("Failed to inspect image %q: %v", c.Image, err)
	event(v1.EventTypeWarning, "InspectFailed", message)
	return nil, &Failure{ImageInspectError, message}
}

func never(c *v1.Container, event func(_, _, _ string)) *Failure {
	message := fmt.Sprintf("Container image %q is not present with pull policy of Never", c.Image)
	event(v1.EventTypeWarning, ErrImageNeverPull, message)
	return &Failure{ErrImageNeverPull, message}
}

// pull asks the registry, with one of the keys after the other. If it gives the image to none of them, doubt, if there is one, is told too.
func (p *Puller) pull(ctx context.Context, ref string, c *v1.Container, keys []credentialprovider.TrackedAuthConfig, doubt error, event func(_, _, _ string)) (Image, *Failure) {
	event(v1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", c.Image))
	began := p.cfg.Now()
	var faults []error
	tries := []*credentialprovider.TrackedAuthConfig{nil} // the node's own credentials, or none
	if len(keys) > 0 {
		tries = nil
		for i := range keys {
			tries = append(tries, &keys[i])
		}
	}
	for _, key := range tries {
		pulled, err := p.cfg.Pull(ctx, ref, authOf(key))
		if err != nil {
			faults = append(faults, err)
			continue
		}
		took := p.cfg.Now().Sub(began).Truncate(time.Millisecond)
		event(v1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.", c.Image, took, took, pulled.Size))
		if err := p.ledger.enter(pulled.ID, key); err != nil {
			return Image{}, &Failure{ErrImagePull, err.Error()}
		}
		return described(pulled), nil
	}
	err := errors.Join(append(faults, doubt)...)
	if ctx.Err() != nil {
		return Image{}, &Failure{ErrImagePull, err.Error()} // nothing is wrong with it: nobody waits any more
	}
	event(v1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", c.Image, err))
	event(v1.EventTypeWarning, "Failed", "Error: "+ErrImagePull)
	return Image{}, &Failure{ErrImagePull, err.Error()}
}

func authOf(key *credentialprovider.TrackedAuthConfig) *image.Auth {
	if key == nil {
		return nil
	}
	a := key.AuthConfig
	return &image.Auth{Username: a.Username, Password: a.Password, Auth: a.Auth, ServerAddress: a.ServerAddress, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
}

// credentials returns those that fit a repository, the best first. doubt is what plugins failed of: an image that everybody may have needs
// none of them, so that is no reason yet not to ask for it.
func (p *Puller) credentials(ctx context.Context, repository string, secrets []*v1.Secret) (keys []credentialprovider.TrackedAuthConfig, doubt, err error) {
	ring := &credentialprovider.BasicDockerKeyring{}
	for _, s := range secrets {
		config, err := configOf(s)
		if err != nil {
			return nil, nil, fmt.Errorf("secret %s/%s: %w", s.Namespace, s.Name, err)
		}
		ring.Add(&credentialprovider.CredentialSource{Secret: &credentialprovider.SecretCoordinates{UID: string(s.UID), Namespace: s.Namespace, Name: s.Name}}, config)
	}
	keys, _ = ring.Lookup(repository)
	if p.cfg.Plugins != nil {
		var more []credentialprovider.TrackedAuthConfig
		more, doubt = p.cfg.Plugins.lookup(ctx, repository)
		keys = append(keys, more...)
	}
	return keys, doubt, nil
}

// configOf reads a secret of either of the two types for registries. Others hold none.
func configOf(s *v1.Secret) (credentialprovider.DockerConfig, error) {
	switch s.Type {
	case v1.SecretTypeDockerConfigJson:
		var file credentialprovider.DockerConfigJSON
		err := unmarshal(s.Data[v1.DockerConfigJsonKey], &file)
		return file.Auths, err
	case v1.SecretTypeDockercfg:
		var config credentialprovider.DockerConfig
		err := unmarshal(s.Data[v1.DockerConfigKey], &config)
		return config, err
	}
	return nil, nil
}

// unmarshal does not repeat the text in its errors: it is secret.
func unmarshal(data []byte, into any) error {
	if len(data) == 0 {
		return nil
	}
	if json.Unmarshal(data, into) != nil {
		return errors.New("it does not hold a Docker configuration in JSON")
	}
	return nil
}

func described(i image.Image) Image {
	out := Image{ID: i.ID}
	user, _, _ := strings.Cut(i.Config.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.UID = &uid
	} else {
		out.Username = user
	}
	return out
}
