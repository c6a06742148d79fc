// Package admin is the operator's door to the daemon: what the berth command needs and the CRI does not have, such as
// loading an archive. It is HTTP with JSON on a unix socket that only the daemon's user can open.
//
//	GET    /v1/images             the images
//	POST   /v1/images/load?name=  body: an archive; answers the images that were in it
//	GET    /v1/images/save?ref=…  answers an archive
//	POST   /v1/images/pull?ref=   body: credentials; answers lines of progress, the last one with the image
//	DELETE /v1/images?ref=
//	GET    /v1/status             what the daemon knows of its node
//	POST   /v1/upgrade?program=   has another daemon take over; answers lines of what it did
//	POST   /v1/keeper             has the keeper replaced in place by the installed one
//	POST   /v1/repair             reads damaged records again whose pods run; answers what became of each
//	POST   /v1/repair?giveUp=ID   takes such a pod or container down
//	POST   /v1/drain?grace=       removes all pods, then ends the daemon; answers lines of what it did
//
// An error is a JSON object {"error": "…"} with a status code of its class; in an answer of lines it is the last line.
package admin

import (
	"context"
	"io"
	"time"
)

// An Image is an image as the operator sees it.
type Image struct {
	ID          string    `json:"id"`
	RepoTags    []string  `json:"repoTags,omitempty"`
	RepoDigests []string  `json:"repoDigests,omitempty"`
	Size        uint64    `json:"size"` // bytes
	Pinned      bool      `json:"pinned,omitempty"`
	Pulled      time.Time `json:"pulled"`
}

// Credentials are those for a registry; the zero value is anonymous.
type Credentials struct {
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
}

// Progress is one line of a long answer. Image or Error make the last line.
type Progress struct {
	Text  string `json:"text,omitempty"`
	Image *Image `json:"image,omitempty"`
	Error string `json:"error,omitempty"`
	// Done is true in the last line of an upgrade that was one.
	Done bool `json:"done,omitempty"`
}

// Status is what the daemon knows of its node.
type Status struct {
	Version      string   `json:"version"`
	RuntimeError string   `json:"runtimeError,omitempty"`
	NetworkError string   `json:"networkError,omitempty"`
	CgroupDriver string   `json:"cgroupDriver"`
	Handlers     []string `json:"handlers"`
	Sandboxes    int      `json:"sandboxes"`
	Containers   int      `json:"containers"`
	// Lingering are earlier daemons that serve their sessions to the end.
	Lingering []Lingering `json:"lingering,omitempty"`
	// Limitations are what the node lacks; Damaged are records that were set aside, or cannot be read while their pod runs.
	Limitations []string `json:"limitations,omitempty"`
	Damaged     []string `json:"damaged,omitempty"`
	// Manifests are the faults of what is declared, each with file and line; what was declared before counts on.
	Manifests []string `json:"manifests,omitempty"`
}

// Lingering is a daemon that has given the node to another one and still serves sessions.
type Lingering struct {
	Pid      int    `json:"pid"`
	Version  string `json:"version"`
	Sessions int    `json:"sessions"`
}

// A Backend does what the door asks for. All fields are required.
type Backend struct {
	Images func() []Image
	Load   func(ctx context.Context, archive io.Reader, name string) ([]Image, error)
	Save   func(ctx context.Context, to io.Writer, refs []string) error
	Pull   func(ctx context.Context, ref string, creds Credentials, tell func(string)) (Image, error)
	Remove func(ctx context.Context, ref string) error
	Status func(ctx context.Context) Status
	// Upgrade has the program at that path, "" for the installed one, take over from this daemon.
	Upgrade func(ctx context.Context, program string, tell func(string)) error
	// ReplaceKeeper has the installed keeper take the place of the one that runs, and returns what it is; "" if it is the
	// same.
	ReplaceKeeper func(ctx context.Context) (build string, err error)
	// Repair reads damaged records again whose pods run, and says what became of each; GiveUp takes such a thing down.
	Repair func(ctx context.Context) ([]string, error)
	GiveUp func(ctx context.Context, id string) error
	// Drain removes all pods; when it has returned nil, the answer is sent and then Stop is called.
	Drain func(ctx context.Context, grace time.Duration, tell func(string)) error
	Stop  func()
}
