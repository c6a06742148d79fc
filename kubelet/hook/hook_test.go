package hook

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func pod() *v1.Pod {
	p := &v1.Pod{}
	p.Name, p.Namespace, p.UID = "p", "ns", "uid"
	return p
}

func TestExec(t *testing.T) {
	for _, c := range []struct {
		output, want string
		status       int32
		err          error
	}{
		{"fine", "", 0, nil},
		{"words", `Exec lifecycle hook ([do it]) for Container "c" in Pod "p_ns(uid)" failed - error: command 'do it' exited with 3: words, message: "words"`, 3, nil},
		{"", `Exec lifecycle hook ([do it]) for Container "c" in Pod "p_ns(uid)" failed - error: broken, message: ""`, 0, errors.New("broken")},
	} {
		r := New(Config{Exec: func(_ context.Context, id string, command []string) ([]byte, int32, error) {
			if id != "id" || strings.Join(command, "+") != "do+it" {
				t.Errorf("%v in %s", command, id)
			}
			return []byte(c.output), c.status, c.err
		}})
		err := r.Run(context.Background(), &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"do", "it"}}}, pod(), &v1.Container{Name: "c"}, "id", "")
		if got := errorText(err); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestHTTP(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path+" "+r.Header.Get("User-Agent")+" "+r.Header.Get("Authorization"))
		w.WriteHeader(http.StatusInternalServerError) // any answer is one
	}))
	defer server.Close()
	where, _ := url.Parse(server.URL)
	port, _ := strconv.Atoi(where.Port())
	var events []string
	r := New(Config{Event: func(_ *v1.Pod, eventType, reason, message string) { events = append(events, eventType+" "+reason) }})
	run := func(g v1.HTTPGetAction, ip string) error {
		return r.Run(context.Background(), &v1.LifecycleHandler{HTTPGet: &g}, pod(), &v1.Container{Name: "c"}, "id", ip)
	}
	if err := run(v1.HTTPGetAction{Path: "/a", Port: intstr.FromInt(port)}, "127.0.0.1"); err != nil {
		t.Error(err)
	}
	if err := run(v1.HTTPGetAction{Path: "/b", Port: intstr.FromInt(port), Scheme: v1.URISchemeHTTPS, HTTPHeaders: []v1.HTTPHeader{{Name: "Authorization", Value: "secret"}}}, "127.0.0.1"); err != nil {
		t.Error(err)
	}
	if got, want := strings.Join(asked, ", "), "/a kube-lifecycle/1.36 , /b kube-lifecycle/1.36 "; got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
	if len(events) != 1 || events[0] != "Warning LifecycleHTTPFallback" {
		t.Errorf("events %q", events)
	}
	if err := run(v1.HTTPGetAction{Path: "/c", Port: intstr.FromInt(1)}, "127.0.0.1"); err == nil || !strings.HasPrefix(err.Error(), `HTTP lifecycle hook (/c) for Container "c" in Pod "p_ns(uid)" failed - error: `) {
		t.Error(err)
	}
	if err := run(v1.HTTPGetAction{Path: "/d", Port: intstr.FromInt(port)}, ""); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Error(err)
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, began := New(Config{}), time.Now()
		run := func(ctx context.Context, seconds int64) error {
			return r.Run(ctx, &v1.LifecycleHandler{Sleep: &v1.SleepAction{Seconds: seconds}}, pod(), &v1.Container{Name: "c"}, "id", "")
		}
		if err := run(context.Background(), 7); err != nil || time.Since(began) != 7*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if err := run(context.Background(), 0); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := run(ctx, 7); err == nil || !strings.HasSuffix(err.Error(), "container terminated before sleep hook finished") {
			t.Error(err)
		}
	})
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	c := &v1.Container{Name: "c", Ports: []v1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}}
	run := func(port intstr.IntOrString, host, ip string) error {
		return New(Config{}).Run(t.Context(), &v1.LifecycleHandler{TCPSocket: &v1.TCPSocketAction{Port: port, Host: host}}, pod(), c, "id", ip)
	}
	for _, err := range []error{
		run(intstr.FromInt(port), "", "127.0.0.1"), run(intstr.FromString("web"), "", "127.0.0.1"), run(intstr.FromInt(port), "127.0.0.1", "192.0.2.1"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	l.Close()
	for want, err := range map[string]error{
		"connection refused": run(intstr.FromInt(port), "", "127.0.0.1"), "no address": run(intstr.FromInt(port), "", ""), "none": run(intstr.FromString("none"), "", "127.0.0.1"),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "TCP lifecycle hook (") || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestNoHandler(t *testing.T) {
	if err := New(Config{}).Run(context.Background(), &v1.LifecycleHandler{}, pod(), &v1.Container{}, "id", ""); err == nil || !strings.HasPrefix(err.Error(), "Cannot run handler: ") {
		t.Error(err)
	}
}
