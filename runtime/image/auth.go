package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/berth-node/berth/internal/errdefs"
)

// Auth are credentials for a registry. One kind is used, the first that is there: RegistryToken, Username and Password,
// IdentityToken, Auth.
type Auth struct {
	Username, Password string
	Auth               string // base64 of "username:password"
	// ServerAddress is the registry that the credentials are for, as a URL or a host. Empty is that of the image.
	ServerAddress string
	IdentityToken string // an OAuth2 refresh token
	RegistryToken string // a bearer token, sent as it is
}

// credentials are an Auth made ready for one pull. They are sent to one host only, and to the token server that this
// host names: never to a mirror that somebody else runs.
type credentials struct {
	host          string // as in URLs
	user, secret  string // without a user the secret is a refresh token
	registryToken string
}

// newCredentials reads auth, which may be nil, for images of a registry.
func newCredentials(auth *Auth, imageHost string) (credentials, error) {
	c := credentials{host: urlHost(imageHost)}
	if auth == nil {
		return c, nil
	}
	if auth.ServerAddress != "" {
		host, err := hostOf(auth.ServerAddress)
		if err != nil {
			return c, err
		}
		c.host = host
	}
	switch {
	case auth.RegistryToken != "":
		c.registryToken = auth.RegistryToken
	case auth.Username != "":
		c.user, c.secret = auth.Username, auth.Password
	case auth.IdentityToken != "":
		c.secret = auth.IdentityToken
	case auth.Auth != "":
		b, err := base64.StdEncoding.DecodeString(auth.Auth)
		user, secret, ok := strings.Cut(string(b), ":")
		if err != nil || !ok {
			return c, fmt.Errorf("auth is not base64 of user:password: %w", errdefs.ErrInvalidArgument)
		}
		c.user, c.secret = user, strings.TrimRight(secret, "\x00") // docker pads it
	}
	return c, nil
}

// hostOf returns the host of a server address as it stands in URLs.
func hostOf(address string) (string, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("server address %q is no host: %w", address, errdefs.ErrInvalidArgument)
	}
	return urlHost(u.Host), nil
}

// urlHost returns the host that serves a registry.
func urlHost(registry string) string {
	switch registry {
	case "docker.io", "index.docker.io":
		return "registry-1.docker.io"
	}
	return registry
}

// forHost returns what docker's authorizer asks for. Empty is anonymous.
func (c credentials) forHost(host string) (user, secret string, err error) {
	if !strings.EqualFold(host, c.host) {
		return "", "", nil
	}
	return c.user, c.secret, nil
}

// apply has the registry token sent to the host that it is for.
func (c credentials) apply(hosts []docker.RegistryHost) {
	if c.registryToken == "" {
		return
	}
	for i := range hosts {
		if strings.EqualFold(hosts[i].Host, c.host) {
			hosts[i].Authorizer = bearer{host: c.host, token: c.registryToken}
		}
	}
}

// bearer authorizes with a token that it was given: docker's authorizer can only use one that it has fetched itself.
type bearer struct{ host, token string }

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	if strings.EqualFold(req.URL.Host, b.host) { // a redirect leads elsewhere
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	return nil
}

func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return errors.Join(docker.ErrInvalidAuthorization, errors.New("the registry refused the registry token"))
}
