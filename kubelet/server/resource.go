package server

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/berth-node/berth/kubelet/feed"
)

// A resource is a kind of objects in the API.
type resource struct {
	kind, plural, singular string
	short, categories      []string
	namespaced             bool
	deletable              bool
	list                   func() ([]feed.Object, uint64)
	get                    func(namespace, name string) (feed.Object, bool) // nil: it is found in the list
	// watch is nil where changes cannot be followed.
	watch   func(after uint64) (watcher, error)
	columns []metav1.TableColumnDefinition
	row     func(o feed.Object, now time.Time) []any
	fields  func(o feed.Object) fields.Set
}

func (r *resource) verbs() []string {
	verbs := []string{"get", "list"}
	if r.deletable {
		verbs = slices.Insert(verbs, 0, "delete")
	}
	if r.watch != nil {
		verbs = append(verbs, "watch")
	}
	return verbs
}

// A watcher waits for changes.
type watcher func(context.Context) ([]change, error)

type change struct {
	version        uint64
	kind           watch.EventType
	object, before feed.Object // before is nil for what was added
}

// follow makes r one whose objects are those of a feed. typed returns a copy that says its kind, as objects that stand alone
// do.
func follow[T feed.Object](r *resource, f *feed.Feed[T], typed func(T) T) *resource {
	r.list = func() ([]feed.Object, uint64) {
		all, version := f.List()
		out := make([]feed.Object, len(all))
		for i, o := range all {
			out[i] = typed(o)
		}
		return out, version
	}
	r.get = func(namespace, name string) (feed.Object, bool) {
		o, ok := f.Get(namespace, name)
		if !ok {
			return nil, false
		}
		return typed(o), true
	}
	r.watch = func(after uint64) (watcher, error) {
		w, err := f.Watch(after)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) ([]change, error) {
			news, err := w.Next(ctx)
			out := make([]change, len(news))
			for i, c := range news {
				out[i] = change{version: c.Version, kind: c.Type, object: typed(c.Object)}
				if c.Type != watch.Added {
					out[i].before = c.Before
				}
			}
			return out, err
		}, nil
	}
	return r
}

// coreResources are those of /api/v1.
func (s *Server) coreResources() map[string]*resource {
	all := []*resource{
		follow(&resource{
			kind: "Pod", plural: "pods", singular: "pod", short: []string{"po"}, categories: []string{"all"},
			namespaced: true, deletable: true, columns: podColumns, row: podRow, fields: podFields,
		}, s.cfg.Kubelet.Pods(), func(o *v1.Pod) *v1.Pod { c := *o; c.TypeMeta = coreType("Pod"); return &c }),
		follow(&resource{
			kind: "ConfigMap", plural: "configmaps", singular: "configmap", short: []string{"cm"},
			namespaced: true, deletable: true, columns: configMapColumns, row: configMapRow, fields: metaFields,
		}, s.cfg.Objects.ConfigMaps(), func(o *v1.ConfigMap) *v1.ConfigMap { c := *o; c.TypeMeta = coreType("ConfigMap"); return &c }),
		follow(&resource{
			kind: "Secret", plural: "secrets", singular: "secret",
			namespaced: true, deletable: true, columns: secretColumns, row: secretRow, fields: secretFields,
		}, s.cfg.Objects.Secrets(), func(o *v1.Secret) *v1.Secret { c := *o; c.TypeMeta = coreType("Secret"); return &c }),
		follow(&resource{
			kind: "PersistentVolumeClaim", plural: "persistentvolumeclaims", singular: "persistentvolumeclaim", short: []string{"pvc"},
			namespaced: true, deletable: true, columns: claimColumns, row: claimRow, fields: metaFields,
		}, s.cfg.Objects.Claims(), func(o *v1.PersistentVolumeClaim) *v1.PersistentVolumeClaim {
			c := *o
			c.TypeMeta = coreType("PersistentVolumeClaim")
			return &c
		}),
		follow(&resource{
			kind: "PersistentVolume", plural: "persistentvolumes", singular: "persistentvolume", short: []string{"pv"},
			deletable: true, columns: volumeColumns, row: volumeRow, fields: metaFields,
		}, s.cfg.Objects.Volumes(), func(o *v1.PersistentVolume) *v1.PersistentVolume {
			c := *o
			c.TypeMeta = coreType("PersistentVolume")
			return &c
		}),
		follow(&resource{
			kind: "Event", plural: "events", singular: "event", short: []string{"ev"},
			namespaced: true, columns: eventColumns, row: eventRow, fields: eventFields,
		}, s.cfg.Events.Feed(), func(o *v1.Event) *v1.Event { c := *o; c.TypeMeta = coreType("Event"); return &c }),
		s.nodes(),
		{
			kind: "Namespace", plural: "namespaces", singular: "namespace", short: []string{"ns"},
			columns: namespaceColumns, row: namespaceRow, fields: metaFields, list: s.namespaces,
		},
	}
	byName := map[string]*resource{}
	for _, r := range all {
		byName[r.plural] = r
	}
	return byName
}

func coreType(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: kind} }

// nodes is the one node, looked at anew for each answer.
func (s *Server) nodes() *resource {
	r := follow(&resource{
		kind: "Node", plural: "nodes", singular: "node", short: []string{"no"},
		columns: nodeColumns, row: nodeRow, fields: metaFields,
	}, s.node, func(o *v1.Node) *v1.Node { c := *o; c.TypeMeta = coreType("Node"); return &c })
	list := r.list
	r.get = nil
	r.list = func() ([]feed.Object, uint64) {
		s.node.Put(s.cfg.Node())
		return list()
	}
	return r
}

// namespaces are those that something is in, and the default one.
func (s *Server) namespaces() ([]feed.Object, uint64) {
	names := map[string]bool{metav1.NamespaceDefault: true}
	version := uint64(1)
	for _, r := range s.resources {
		if !r.namespaced {
			continue
		}
		objects, v := r.list()
		version = max(version, v)
		for _, o := range objects {
			names[o.GetNamespace()] = true
		}
	}
	since := s.cfg.Node().CreationTimestamp
	var out []feed.Object
	for _, name := range slices.Sorted(maps.Keys(names)) {
		out = append(out, &v1.Namespace{
			TypeMeta: coreType("Namespace"),
			ObjectMeta: metav1.ObjectMeta{
				Name: name, CreationTimestamp: since, ResourceVersion: strconv.FormatUint(version, 10),
				Labels: map[string]string{v1.LabelMetadataName: name},
			},
			Status: v1.NamespaceStatus{Phase: v1.NamespaceActive},
		})
	}
	return out, version
}

// A query is what a list or a watch asks for.
type query struct {
	*resource
	namespace string // "" for all
	labels    labels.Selector
	fields    fields.Selector
	form      form
}

func (s *Server) query(r *http.Request) (*query, error) {
	res := s.resources[r.PathValue("resource")]
	namespace := r.PathValue("namespace")
	if res == nil || namespace != "" && !res.namespaced {
		return nil, errNoPath(r)
	}
	q := &query{resource: res, namespace: namespace, form: formOf(r)}
	var err error
	if q.labels, err = labels.Parse(r.FormValue("labelSelector")); err != nil {
		return nil, errBadRequest("unable to parse label selector: %v", err)
	}
	if q.fields, err = fields.ParseSelector(r.FormValue("fieldSelector")); err != nil {
		return nil, errBadRequest("unable to parse field selector: %v", err)
	}
	known := res.fields(emptyOf(res.kind))
	for _, want := range q.fields.Requirements() {
		if !known.Has(want.Field) {
			return nil, errBadRequest("field label not supported: %s", want.Field)
		}
	}
	return q, nil
}

func (q *query) wants(o feed.Object) bool {
	return (q.namespace == "" || o.GetNamespace() == q.namespace) &&
		q.labels.Matches(labels.Set(o.GetLabels())) &&
		(q.fields.Empty() || q.fields.Matches(q.resource.fields(o)))
}

// one returns the only name that can fit, if there is one.
func (q *query) one() (string, bool) {
	for _, want := range q.fields.Requirements() {
		if want.Field == "metadata.name" && want.Operator == selection.Equals {
			return want.Value, true
		}
	}
	return "", false
}

func (q *query) selected() ([]feed.Object, uint64) {
	all, version := q.list()
	name, single := q.one()
	return slices.DeleteFunc(all, func(o feed.Object) bool { return single && o.GetName() != name || !q.wants(o) }), version
}

func (s *Server) handleList(w http.ResponseWriter, r *http.Request) {
	q, err := s.query(r)
	if err != nil {
		fail(w, err)
		return
	}
	if isTrue(r, "watch") {
		s.serveWatch(w, r, q)
		return
	}
	objects, version := q.selected()
	send(w, http.StatusOK, q.form.list(q.resource, objects, version, s.cfg.Now()))
}

func (s *Server) find(resource, namespace, name string) (*resource, feed.Object, error) {
	res := s.resources[resource]
	if res == nil || (namespace != "") != res.namespaced {
		return nil, nil, errNoPath(nil)
	}
	if res.get != nil {
		if o, ok := res.get(namespace, name); ok {
			return res, o, nil
		}
		return nil, nil, errNotFound(resource, name)
	}
	all, _ := res.list()
	for _, o := range all {
		if o.GetNamespace() == namespace && o.GetName() == name {
			return res, o, nil
		}
	}
	return nil, nil, errNotFound(resource, name)
}

func (s *Server) handleGet(w http.ResponseWriter, r *http.Request) {
	res, o, err := s.find(r.PathValue("resource"), r.PathValue("namespace"), r.PathValue("name"))
	if err != nil {
		fail(w, err)
		return
	}
	send(w, http.StatusOK, formOf(r).one(res, o, s.cfg.Now()))
}

func isTrue(r *http.Request, key string) bool {
	v, err := strconv.ParseBool(cmp.Or(r.FormValue(key), "false"))
	return err == nil && v
}

// watchLimit ends watches for which the client names no time; it then begins another.
const watchLimit = time.Hour

// serveWatch tells changes until the client goes, or its time has come.
func (s *Server) serveWatch(w http.ResponseWriter, r *http.Request, q *query) {
	if q.watch == nil {
		fail(w, errNotAllowed(q.plural, "watch"))
		return
	}
	after, err := strconv.ParseUint(cmp.Or(r.FormValue("resourceVersion"), "0"), 10, 64)
	if err != nil {
		fail(w, errBadRequest("invalid resource version %q", r.FormValue("resourceVersion")))
		return
	}
	limit := watchLimit
	if seconds, err := strconv.Atoi(r.FormValue("timeoutSeconds")); err == nil && seconds > 0 {
		limit = time.Duration(seconds) * time.Second
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()

	// Without a version, and where the client says so, all that there is comes first.
	initial := isTrue(r, "sendInitialEvents") || r.FormValue("sendInitialEvents") == "" && after == 0
	var first []feed.Object
	if initial {
		first, after = q.selected()
	}
	next, err := q.watch(after)
	if err != nil {
		fail(w, err)
		return
	}
	out := newWatchWriter(w, q, s.cfg.Now)
	out.begin()
	for _, o := range first {
		out.tell(watch.Added, o)
	}
	if isTrue(r, "sendInitialEvents") {
		out.bookmark(after)
	}
	out.flush()
	for out.err == nil {
		changes, err := next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			out.fail(err)
			return
		}
		for _, c := range changes {
			out.change(c)
		}
		out.flush()
	}
}

// A watchWriter writes the events of a watch.
type watchWriter struct {
	q    *query
	now  func() time.Time
	w    http.ResponseWriter
	json *json.Encoder
	err  error
	// rows says that a table was sent: only the first one says what its columns are.
	rows bool
}

func newWatchWriter(w http.ResponseWriter, q *query, now func() time.Time) *watchWriter {
	o := &watchWriter{q: q, now: now, w: w, json: json.NewEncoder(w)}
	o.json.SetEscapeHTML(false)
	return o
}

func (o *watchWriter) begin() {
	o.w.Header().Set("Content-Type", "application/json;stream=watch")
	o.w.WriteHeader(http.StatusOK)
	o.flush()
}

func (o *watchWriter) flush() {
	if err := http.NewResponseController(o.w).Flush(); err != nil {
		o.err = cmp.Or(o.err, err)
	}
}

// change tells a change as one who sees only what is selected sees it: what begins to fit comes, what does not fit any more
// goes.
func (o *watchWriter) change(c change) {
	was := c.before != nil && o.q.wants(c.before)
	is := c.kind != watch.Deleted && o.q.wants(c.object)
	switch {
	case is && was:
		o.tell(watch.Modified, c.object)
	case is:
		o.tell(watch.Added, c.object)
	case was:
		o.tell(watch.Deleted, c.object)
	}
}

func (o *watchWriter) tell(kind watch.EventType, object feed.Object) {
	shown := o.q.form.one(o.q.resource, object, o.now())
	if t, ok := shown.(*metav1.Table); ok {
		if o.rows {
			t.ColumnDefinitions = nil
		}
		o.rows = true
	}
	o.write(kind, shown)
}

// bookmark says that what was there has been told.
func (o *watchWriter) bookmark(version uint64) {
	object := emptyOf(o.q.kind)
	object.SetResourceVersion(strconv.FormatUint(version, 10))
	object.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	o.write(watch.Bookmark, object)
}

func (o *watchWriter) fail(err error) {
	status := statusOf(err)
	o.write(watch.Error, &status)
}

func (o *watchWriter) write(kind watch.EventType, object any) {
	err := o.json.Encode(struct {
		Type   watch.EventType `json:"type"`
		Object any             `json:"object"`
	}{kind, object})
	if err != nil && o.err == nil {
		o.err = err
	}
}

// emptyOf is an object of a kind without content.
func emptyOf(kind string) feed.Object {
	switch kind {
	case "Pod":
		return &v1.Pod{TypeMeta: coreType(kind)}
	case "ConfigMap":
		return &v1.ConfigMap{TypeMeta: coreType(kind)}
	case "Secret":
		return &v1.Secret{TypeMeta: coreType(kind)}
	case "PersistentVolumeClaim":
		return &v1.PersistentVolumeClaim{TypeMeta: coreType(kind)}
	case "PersistentVolume":
		return &v1.PersistentVolume{TypeMeta: coreType(kind)}
	case "Event":
		return &v1.Event{TypeMeta: coreType(kind)}
	case "Node":
		return &v1.Node{TypeMeta: coreType(kind)}
	default:
		return &v1.Namespace{TypeMeta: coreType(kind)}
	}
}
