package pull

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/runtime/image"
)

// A registry has images, each behind a password or none, and the node has some of them.
type registry struct {
	password map[string]string // by reference
	here     map[string]image.Image
	broken   error
	asked    []string
	events   []string
	puller   *Puller
}

func newRegistry(t *testing.T, plugins *Plugins) *registry {
	t.Helper()
	r := &registry{password: map[string]string{"reg.test/free:latest": "", "reg.test/a/closed:1": "pw", "reg.test/other:1": "x"}, here: map[string]image.Image{}}
	p, err := New(Config{Dir: filepath.Join(t.TempDir(), "pulled"), Plugins: plugins, Now: time.Now,
		Get: func(ref string) (image.Image, error) {
			if i, ok := r.here[ref]; ok || r.broken != nil {
				return i, r.broken
			}
			return image.Image{}, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
		},
		Pull: func(_ context.Context, ref string, auth *image.Auth) (image.Image, error) {
			who := "nobody"
			if auth != nil {
				who = auth.Username + ":" + auth.Password
			}
			r.asked = append(r.asked, ref+" by "+who)
			password, ok := r.password[ref]
			if !ok {
				return image.Image{}, errdefs.ErrNotFound
			}
			if password != "" && (auth == nil || auth.Password != password) {
				return image.Image{}, errdefs.ErrPermissionDenied
			}
			i := image.Image{ID: "sha256:" + fmt.Sprintf("%x", ref), Size: 7}
			i.Config.Config.User = "1234:5"
			r.here[ref] = i
			return i, nil
		},
		Event: func(_ *v1.Pod, c *v1.Container, eventType, reason, message string) {
			r.events = append(r.events, strings.Join([]string{eventType, reason, message}, " "))
		}})
	if err != nil {
		t.Fatal(err)
	}
	r.puller = p
	return r
}

func secret(name, password string) *v1.Secret {
	s := &v1.Secret{Type: v1.SecretTypeDockerConfigJson, Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(`{"auths":{"reg.test/a":{"username":"me","password":"` + password + `"}}}`)}}
	s.Name, s.Namespace, s.UID = name, "default", types.UID("uid-"+name)
	return s
}

func (r *registry) ensure(name string, policy v1.PullPolicy, secrets ...*v1.Secret) (Image, *Failure) {
	r.events = nil
	return r.puller.Ensure(context.Background(), &v1.Pod{}, &v1.Container{Name: "c", Image: name, ImagePullPolicy: policy}, secrets)
}

func (r *registry) wantAsked(t *testing.T, want ...string) {
	t.Helper()
	if fmt.Sprint(r.asked) != fmt.Sprint(want) {
		t.Errorf("the registry was asked for %q, want %q", r.asked, want)
	}
	r.asked = nil
}

func (r *registry) wantEvents(t *testing.T, want ...string) {
	t.Helper()
	for i, e := range r.events {
		if i >= len(want) || !strings.HasPrefix(e, want[i]) {
			t.Errorf("event %q, want %q", e, append(want, "none")[min(i, len(want))])
		}
	}
	if len(r.events) < len(want) {
		t.Errorf("events %q, want %q", r.events, want)
	}
}

func wantFailure(t *testing.T, f *Failure, reason, message string) {
	t.Helper()
	if f == nil || f.Reason != reason || !strings.Contains(f.Message, message) {
		t.Errorf("%v, want %s: …%s…", f, reason, message)
	}
}

func TestPolicies(t *testing.T) {
	r := newRegistry(t, nil)
	_, f := r.ensure("reg.test/free", v1.PullNever)
	wantFailure(t, f, ErrImageNeverPull, `Container image "reg.test/free" is not present with pull policy of Never`)
	r.wantEvents(t, `Warning ErrImageNeverPull Container image "reg.test/free" is not present with pull policy of Never`)
	r.wantAsked(t)

	i, f := r.ensure("reg.test/free", v1.PullIfNotPresent)
	if f != nil || i.UID == nil || *i.UID != 1234 || i.Username != "" {
		t.Errorf("%+v, %v", i, f)
	}
	r.wantAsked(t, "reg.test/free:latest by nobody")
	r.wantEvents(t, `Normal Pulling Pulling image "reg.test/free"`, `Normal Pulled Successfully pulled image "reg.test/free" in `)

	for _, policy := range []v1.PullPolicy{v1.PullIfNotPresent, v1.PullNever} {
		if _, f = r.ensure("reg.test/free", policy); f != nil {
			t.Error(f)
		}
		r.wantAsked(t)
		r.wantEvents(t, `Normal Pulled Container image "reg.test/free" already present on machine and can be accessed by the pod`)
	}
	if _, f = r.ensure("reg.test/free", v1.PullAlways); f != nil {
		t.Error(f)
	}
	r.wantAsked(t, "reg.test/free:latest by nobody")
}

func TestFailures(t *testing.T) {
	r := newRegistry(t, nil)
	_, f := r.ensure("reg.test/none:1", v1.PullIfNotPresent)
	wantFailure(t, f, ErrImagePull, "not found")
	r.wantEvents(t, `Normal Pulling Pulling image "reg.test/none:1"`, `Warning Failed Failed to pull image "reg.test/none:1": not found`, `Warning Failed Error: ErrImagePull`)
	// Who ends the daemon, or the pod, does not make the image a bad one.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r.events = nil
	_, f = r.puller.Ensure(ctx, &v1.Pod{}, &v1.Container{Name: "c", Image: "reg.test/none:1"}, nil)
	wantFailure(t, f, ErrImagePull, "not found")
	r.wantEvents(t, `Normal Pulling Pulling image "reg.test/none:1"`)
	_, f = r.ensure("Reg//x::", v1.PullIfNotPresent)
	wantFailure(t, f, InvalidImageName, `Failed to apply default image tag "Reg//x::": `)
	r.broken = errors.New("broken")
	_, f = r.ensure("reg.test/free", v1.PullIfNotPresent)
	wantFailure(t, f, ImageInspectError, `Failed to inspect image "reg.test/free": broken`)
}

func TestSecrets(t *testing.T) {
	r := newRegistry(t, nil)
	wrong, right := secret("wrong", "no"), secret("right", "pw")
	broken := &v1.Secret{Type: v1.SecretTypeDockerConfigJson, Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(`"hidden`)}}
	broken.Name, broken.Namespace = "broken", "default"
	old := &v1.Secret{Type: v1.SecretTypeDockercfg, Data: map[string][]byte{v1.DockerConfigKey: []byte(`{"reg.test":{"username":"me","password":"x"}}`)}}

	_, f := r.ensure("reg.test/a/closed:1", v1.PullIfNotPresent)
	wantFailure(t, f, ErrImagePull, "permission denied")
	_, f = r.ensure("reg.test/a/closed:1", v1.PullIfNotPresent, broken)
	wantFailure(t, f, ErrImagePull, "secret default/broken: it does not hold")
	if strings.Contains(f.Message, "hidden") {
		t.Error("the text of a secret is told")
	}
	r.asked = nil
	if _, f = r.ensure("reg.test/a/closed:1", v1.PullIfNotPresent, wrong, right); f != nil {
		t.Error(f)
	}
	r.wantAsked(t, "reg.test/a/closed:1 by me:no", "reg.test/a/closed:1 by me:pw")
	if _, f = r.ensure("reg.test/other:1", v1.PullIfNotPresent, old); f != nil {
		t.Error(f)
	}
	r.wantAsked(t, "reg.test/other:1 by me:x")
	// A secret for elsewhere is shown to nobody.
	if _, f = r.ensure("reg.test/free", v1.PullIfNotPresent, right); f != nil {
		t.Error(f)
	}
	r.wantAsked(t, "reg.test/free:latest by nobody")
}

// An image that one pod's secret has brought is not another's who has none: the registry decides.
func TestWhoMayHaveIt(t *testing.T) {
	r := newRegistry(t, nil)
	right := secret("right", "pw")
	if _, f := r.ensure("reg.test/a/closed:1", v1.PullIfNotPresent, right); f != nil {
		t.Fatal(f)
	}
	r.asked = nil
	if _, f := r.ensure("reg.test/a/closed:1", v1.PullIfNotPresent, right); f != nil {
		t.Error(f)
	}
	same := secret("same", "pw") // another secret with the same words
	if _, f := r.ensure("reg.test/a/closed:1", v1.PullNever, same); f != nil {
		t.Error(f)
	}
	r.wantAsked(t)
	_, f := r.ensure("reg.test/a/closed:1", v1.PullIfNotPresent)
	wantFailure(t, f, ErrImagePull, "permission denied")
	_, f = r.ensure("reg.test/a/closed:1", v1.PullNever)
	wantFailure(t, f, ErrImageNeverPull, "is not present with pull policy of Never")
	r.wantAsked(t, "reg.test/a/closed:1 by nobody")
	// What was loaded by hand is everybody's.
	r.here["reg.test/loaded:1"] = image.Image{ID: "sha256:5"}
	if _, f := r.ensure("reg.test/loaded:1", v1.PullNever); f != nil {
		t.Error(f)
	}
	// A record that is damaged allows nobody, and the next pull mends it.
	id := r.here["reg.test/a/closed:1"].ID
	if err := os.WriteFile(r.puller.ledger.path(id), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, f := r.ensure("reg.test/a/closed:1", v1.PullIfNotPresent, right); f != nil {
			t.Error(f)
		}
	}
	r.wantAsked(t, "reg.test/a/closed:1 by me:pw")
	if err := r.puller.Forget(func(i string) bool { return i != id }); err != nil {
		t.Error(err)
	}
	if _, known, _ := r.puller.ledger.read(id); known {
		t.Error("an image that is gone is still known")
	}
}

func TestPlugins(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	program := `#!/bin/sh
echo call >> ` + dir + `/calls
grep -q '"image":"reg.test/a/closed"' || { echo "odd request" >&2; exit 1; }
echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","auth":{"reg.test/a":{"username":"'$1'","password":"'$PASSWORD'"}}}'
`
	write("plug", program)
	config := func(rest string) string {
		return write("config.yaml", `{kind: CredentialProviderConfig, apiVersion: kubelet.config.k8s.io/v1, providers: [`+rest+`]}`)
	}
	one := `{name: plug, matchImages: ["reg.test"], defaultCacheDuration: 1h, apiVersion: credentialprovider.kubelet.k8s.io/v1, args: [it], env: [{name: PASSWORD, value: pw}]}`
	plugins, err := LoadPlugins(config(one), dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	r := newRegistry(t, plugins)
	for range 2 {
		if _, f := r.ensure("reg.test/a/closed:1", v1.PullAlways); f != nil {
			t.Error(f)
		}
	}
	r.wantAsked(t, "reg.test/a/closed:1 by it:pw", "reg.test/a/closed:1 by it:pw")
	if calls, _ := os.ReadFile(filepath.Join(dir, "calls")); string(calls) != "call\n" {
		t.Errorf("called %q, want once: the answer is to be kept", calls)
	}
	// What the node may have, every pod may.
	if _, f := r.ensure("reg.test/a/closed:1", v1.PullNever); f != nil {
		t.Error(f)
	}
	write("plug", "#!/bin/sh\necho no luck >&2; exit 3\n")
	plugins, err = LoadPlugins(config(one), dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	r = newRegistry(t, plugins)
	_, f := r.ensure("reg.test/a/closed:1", v1.PullAlways)
	wantFailure(t, f, ErrImagePull, "credential provider plugin plug: exit status 3: no luck")
	if _, f := r.ensure("reg.test/a/closed:1", v1.PullAlways, secret("right", "pw")); f != nil {
		t.Errorf("with a secret the plugin's failure does not matter: %v", f)
	}
	if _, f := r.ensure("reg.test/free", v1.PullAlways); f != nil {
		t.Errorf("of an image that everybody may have the plugin's failure does not matter: %v", f)
	}
	for _, c := range []struct{ config, want string }{
		{strings.Replace(one, "name: plug", "name: ../plug", 1), "providers[0]: name: "},
		{strings.Replace(one, "name: plug", "name: none", 1), "providers[0]: name: "},
		{strings.Replace(one, `["reg.test"]`, "[]", 1), "matchImages: at least one"},
		{strings.Replace(one, "1h", "soon", 1), "defaultCacheDuration"},
		{strings.Replace(one, "io/v1,", "io/v9,", 1), "apiVersion"},
		{strings.Replace(one, "args", "argz", 1), "argz"},
	} {
		if _, err := LoadPlugins(config(c.config), dir, time.Now); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.config, err, c.want)
		}
	}
}
