package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ServeHTTP answers one request of the distribution protocol, or of the token service behind bearer authentication.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	host := hostOf(req)
	logged := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	r.wait(req)
	switch {
	case req.URL.Path == tokenPath:
		r.serveToken(logged, req)
	case !r.authorized(logged, req, host):
		// authorized has answered.
	case req.URL.Path == "/v2/" || req.URL.Path == "/v2":
		logged.WriteHeader(http.StatusOK)
	default:
		r.route(logged, req, host)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, Request{Host: host, Method: req.Method, Path: req.URL.Path, Status: logged.status})
}

func (r *Registry) wait(req *http.Request) {
	r.mu.Lock()
	hold := r.hold
	r.mu.Unlock()
	if hold == nil {
		return
	}
	if until := hold(req); until != nil {
		select {
		case <-until:
		case <-req.Context().Done():
		}
	}
}

// hostOf returns the host that a request means, without a port if it is a name: the port of a test server changes from run
// to run.
func hostOf(req *http.Request) string {
	named := req.URL.Query().Get("ns")
	if named == "" {
		named = req.Host
	}
	host, _, err := net.SplitHostPort(named)
	if err != nil || net.ParseIP(host) != nil {
		return named
	}
	return host
}

// route takes /v2/<repository>/<kind>/<rest> apart; a repository may hold slashes.
func (r *Registry) route(w http.ResponseWriter, req *http.Request, host string) {
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	for _, kind := range []struct {
		word  string
		serve func(w http.ResponseWriter, req *http.Request, repo, rest string)
	}{
		{"/manifests/", r.serveManifest},
		{"/blobs/uploads/", r.serveUpload},
		{"/blobs/", r.serveBlob},
		{"/tags/list", r.serveTags},
	} {
		if i := strings.LastIndex(path, kind.word); i > 0 {
			kind.serve(w, req, host+"/"+path[:i], path[i+len(kind.word):])
			return
		}
	}
	fail(w, http.StatusNotFound, "UNSUPPORTED", "no such resource")
}

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, repo, reference string) {
	if req.Method == http.MethodPut {
		r.putManifest(w, req, repo, reference)
		return
	}
	r.mu.Lock()
	d := digest.Digest(reference)
	if d.Validate() != nil {
		d = r.tags[repo+":"+reference].Digest
	}
	mediaType := r.types[d]
	data, err := r.blob(d)
	r.mu.Unlock()
	if mediaType == "" || err != nil {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", repo+" "+reference)
		return
	}
	send(w, req, mediaType, d, data)
}

func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, repo, reference string) {
	data, err := io.ReadAll(req.Body)
	if err != nil {
		fail(w, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
		return
	}
	d := digest.FromBytes(data)
	desc := ocispec.Descriptor{MediaType: req.Header.Get("Content-Type"), Digest: d, Size: int64(len(data))}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pushed[d] = data
	name := ""
	if digest.Digest(reference).Validate() != nil {
		name = repo + ":" + reference
	}
	if err := r.learn(name, desc); err != nil {
		fail(w, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
		return
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, repo, reference string) {
	r.mu.Lock()
	data, err := r.blob(digest.Digest(reference))
	r.mu.Unlock()
	if err != nil {
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", repo+" "+reference)
		return
	}
	send(w, req, "application/octet-stream", digest.Digest(reference), data)
}

func (r *Registry) serveTags(w http.ResponseWriter, _ *http.Request, repo, _ string) {
	list := struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{Name: repo}
	r.mu.Lock()
	for name := range r.tags {
		if tag, ok := strings.CutPrefix(name, repo+":"); ok {
			list.Tags = append(list.Tags, tag)
		}
	}
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list) // the client has gone, and notices by itself
}

// serveUpload takes a blob: POST opens an upload or brings it whole, PATCH adds to it, PUT ends it.
func (r *Registry) serveUpload(w http.ResponseWriter, req *http.Request, repo, id string) {
	data, err := io.ReadAll(req.Body)
	if err != nil {
		fail(w, http.StatusBadRequest, "BLOB_UPLOAD_INVALID", err.Error())
		return
	}
	want := digest.Digest(req.URL.Query().Get("digest"))
	r.mu.Lock()
	defer r.mu.Unlock()
	if req.Method == http.MethodPost {
		id = strconv.Itoa(len(r.uploads) + 1)
	}
	r.uploads[id] = append(r.uploads[id], data...)
	_, name, _ := strings.Cut(repo, "/")
	location := fmt.Sprintf("/v2/%s/blobs/uploads/%s", name, id)
	switch {
	case want == "":
		w.Header().Set("Location", location)
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(len(r.uploads[id])-1, 0)))
		w.WriteHeader(http.StatusAccepted)
	case digest.FromBytes(r.uploads[id]) != want:
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", "the content has another digest")
	default:
		r.pushed[want] = r.uploads[id]
		w.Header().Set("Location", fmt.Sprintf("/v2/%s/blobs/%s", name, want))
		w.Header().Set("Docker-Content-Digest", want.String())
		w.WriteHeader(http.StatusCreated)
	}
}

func send(w http.ResponseWriter, req *http.Request, mediaType string, d digest.Digest, data []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

// statusWriter remembers the status for the list of requests.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}
