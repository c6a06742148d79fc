package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/berth-node/berth/internal/errdefs"
	"github.com/berth-node/berth/internal/stream"
	"github.com/berth-node/berth/kubelet"
)

// pod is the pod that the path names.
func (s *Server) pod(r *http.Request) (*v1.Pod, error) {
	pod, ok := s.cfg.Kubelet.Pods().Get(r.PathValue("namespace"), r.PathValue("name"))
	if !ok {
		return nil, errNotFound("pods", r.PathValue("name"))
	}
	return pod, nil
}

// containerName is the container that is asked for, or the only one.
func containerName(pod *v1.Pod, asked string) (string, error) {
	names := func(all []v1.Container) (out []string) {
		for i := range all {
			out = append(out, all[i].Name)
		}
		return out
	}
	containers := names(pod.Spec.Containers)
	inits := names(pod.Spec.InitContainers)
	if asked == "" && len(containers) == 1 {
		return containers[0], nil
	}
	if asked == "" {
		text := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, strings.Join(containers, " "))
		if len(inits) > 0 {
			text += fmt.Sprintf(" or one of the init containers: [%s]", strings.Join(inits, " "))
		}
		return "", errBadRequest("%s", text)
	}
	for _, name := range append(containers, inits...) {
		if name == asked {
			return asked, nil
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == asked {
			return asked, nil
		}
	}
	return "", errBadRequest("container %s is not valid for pod %s", asked, pod.Name)
}

// running is the runtime's ID of the running container that a request is for.
func (s *Server) running(r *http.Request, asked string) (string, error) {
	pod, err := s.pod(r)
	if err != nil {
		return "", err
	}
	if pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed {
		return "", errBadRequest("cannot exec into a container in a completed pod; current phase is %s", pod.Status.Phase)
	}
	name, err := containerName(pod, asked)
	if err != nil {
		return "", err
	}
	return s.runningContainer(pod, name)
}

// runningContainer answers as the kubelet does where there is none.
func (s *Server) runningContainer(pod *v1.Pod, name string) (string, error) {
	id, err := s.cfg.Kubelet.ContainerID(pod.Namespace, pod.Name, name, false)
	if err == nil && isRunning(pod, name) {
		return id, nil
	}
	return "", apierrors.NewInternalError(fmt.Errorf("container not found (%q)", name))
}

func isRunning(pod *v1.Pod, container string) bool {
	for _, all := range [][]v1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range all {
			if all[i].Name == container {
				return all[i].State.Running != nil
			}
		}
	}
	return false
}

// flags reads what a client wants to be connected: its query has other words at the kubelet's port.
func flags(q url.Values, stdin, stdout, stderr string) (stream.Connect, error) {
	var c stream.Connect
	for key, to := range map[string]*bool{stdin: &c.Stdin, stdout: &c.Stdout, stderr: &c.Stderr, "tty": &c.TTY} {
		if text := q.Get(key); text != "" {
			v, err := strconv.ParseBool(text)
			if err != nil {
				return c, errBadRequest("%s: %q is neither true nor false", key, text)
			}
			*to = v
		}
	}
	if c.TTY {
		c.Stderr = false // a terminal has one output
	}
	if !c.Stdin && !c.Stdout && !c.Stderr {
		return c, errBadRequest("you must specify at least 1 of stdin, stdout, stderr")
	}
	return c, nil
}

func (s *Server) handleExec(w http.ResponseWriter, r *http.Request) {
	connect, err := flags(r.URL.Query(), "stdin", "stdout", "stderr")
	var id string
	if err == nil {
		id, err = s.running(r, r.URL.Query().Get("container"))
	}
	s.serveExec(w, r, id, connect, err)
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, id string, connect stream.Connect, err error) {
	command := r.URL.Query()["command"]
	if err == nil && len(command) == 0 {
		err = errBadRequest("you must specify at least one command for the container")
	}
	if err != nil {
		fail(w, err)
		return
	}
	s.cfg.Sessions.ServeExec(w, r, stream.ExecRequest{ContainerID: id, Cmd: command, Connect: connect})
}

func (s *Server) handleAttach(w http.ResponseWriter, r *http.Request) {
	connect, err := flags(r.URL.Query(), "stdin", "stdout", "stderr")
	var id string
	if err == nil {
		id, err = s.running(r, r.URL.Query().Get("container"))
	}
	if err != nil {
		fail(w, err)
		return
	}
	s.cfg.Sessions.ServeAttach(w, r, stream.AttachRequest{ContainerID: id, Connect: connect})
}

func (s *Server) handlePortForward(w http.ResponseWriter, r *http.Request) {
	pod, err := s.pod(r)
	if err != nil {
		fail(w, err)
		return
	}
	s.servePortForward(w, r, pod)
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, pod *v1.Pod) {
	id, err := s.cfg.Kubelet.SandboxID(pod.Namespace, pod.Name)
	if err != nil {
		fail(w, apierrors.NewInternalError(err))
		return
	}
	req := stream.PortForwardRequest{SandboxID: id}
	for _, text := range r.URL.Query()["ports"] {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			fail(w, errBadRequest("%q is no port", text))
			return
		}
		req.Ports = append(req.Ports, int32(port))
	}
	s.cfg.Sessions.ServePortForward(w, r, req)
}

// maxOptions bounds the body of a deletion, in bytes.
const maxOptions = 64 << 10

func deleteOptions(r *http.Request) (metav1.DeleteOptions, error) {
	var o metav1.DeleteOptions
	if err := json.NewDecoder(io.LimitReader(r.Body, maxOptions)).Decode(&o); err != nil && !errors.Is(err, io.EOF) {
		return o, errBadRequest("DeleteOptions: %v", err)
	}
	if text := r.URL.Query().Get("gracePeriodSeconds"); text != "" {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return o, errBadRequest("gracePeriodSeconds: %q is no number", text)
		}
		o.GracePeriodSeconds = &seconds
	}
	if o.GracePeriodSeconds != nil && *o.GracePeriodSeconds < 0 {
		one := int64(1) // as upstream: at once, but by the book
		o.GracePeriodSeconds = &one
	}
	if len(r.URL.Query()["dryRun"]) > 0 {
		o.DryRun = r.URL.Query()["dryRun"]
	}
	return o, nil
}

func (s *Server) handleDelete(w http.ResponseWriter, r *http.Request) {
	resource, namespace, name := r.PathValue("resource"), r.PathValue("namespace"), r.PathValue("name")
	options, err := deleteOptions(r)
	if err != nil {
		fail(w, err)
		return
	}
	res, object, err := s.find(resource, namespace, name)
	if err != nil {
		fail(w, err)
		return
	}
	if !res.deletable {
		fail(w, errNotAllowed(resource, "delete"))
		return
	}
	if p := options.Preconditions; p != nil && p.UID != nil && *p.UID != object.GetUID() {
		why := fmt.Sprintf("Precondition failed: UID in precondition: %v, UID in object meta: %v", *p.UID, object.GetUID())
		fail(w, apierrors.NewConflict(schema.GroupResource{Resource: resource}, name, errors.New(why)))
		return
	}
	if len(options.DryRun) > 0 {
		send(w, http.StatusOK, object)
		return
	}
	if resource != "pods" {
		if err := s.cfg.Objects.Delete(r.Context(), res.kind, namespace, name); err != nil {
			fail(w, err)
			return
		}
		send(w, http.StatusOK, metav1.Status{
			TypeMeta: coreType("Status"), Status: metav1.StatusSuccess,
			Details: &metav1.StatusDetails{Name: name, Kind: resource, UID: object.GetUID()},
		})
		return
	}
	pod, err := s.cfg.Kubelet.DeletePod(r.Context(), namespace, name, kubelet.DeleteOptions{Grace: options.GracePeriodSeconds, UID: object.GetUID()})
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		fail(w, errNotFound(resource, name))
	case err != nil:
		fail(w, err)
	default:
		shown := *pod
		shown.TypeMeta = coreType("Pod")
		send(w, http.StatusOK, &shown)
	}
}

// maxManifests bounds what is applied at once, in bytes.
const maxManifests = 64 << 20

func (s *Server) handleApply(w http.ResponseWriter, r *http.Request) {
	var request ApplyRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxManifests)).Decode(&request); err != nil {
		fail(w, errBadRequest("%v", err))
		return
	}
	result, err := s.cfg.Objects.Apply(r.Context(), request)
	if err != nil {
		fail(w, err)
		return
	}
	send(w, http.StatusOK, result)
}

func (s *Server) handleRestart(w http.ResponseWriter, r *http.Request) {
	pod, err := s.pod(r)
	if err != nil {
		fail(w, err)
		return
	}
	options, err := deleteOptions(r)
	if err != nil {
		fail(w, err)
		return
	}
	container := r.URL.Query().Get("container")
	if container != "" {
		if _, err := containerName(pod, container); err != nil {
			fail(w, err)
			return
		}
	}
	if err := s.cfg.Kubelet.Restart(r.Context(), pod.Namespace, pod.Name, container, options.GracePeriodSeconds); err != nil {
		fail(w, err)
		return
	}
	send(w, http.StatusOK, metav1.Status{TypeMeta: coreType("Status"), Status: metav1.StatusSuccess})
}
