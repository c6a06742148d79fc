package server

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/berth-node/berth/kubelet/feed"
)

// A form is how a client wants objects: whole, as rows of a table, or their metadata alone.
type form struct {
	as string // "", "Table" or "PartialObjectMetadata"
	// include is what a row has of its object: "None", "Metadata" or "Object".
	include string
}

// formOf reads the Accept header. What cannot be served, such as protobuf, is answered in JSON, which all clients take.
func formOf(r *http.Request) form {
	f := form{include: r.FormValue("includeObject")}
	for _, accepted := range strings.Split(r.Header.Get("Accept"), ",") {
		parts := strings.Split(accepted, ";")
		media := strings.TrimSpace(parts[0])
		if media != "application/json" && media != "*/*" && media != "application/*" {
			continue
		}
		parameters := map[string]string{}
		for _, p := range parts[1:] {
			key, value, _ := strings.Cut(strings.TrimSpace(p), "=")
			parameters[key] = value
		}
		if parameters["g"] != "" && (parameters["g"] != "meta.k8s.io" || parameters["v"] != "v1") {
			continue
		}
		switch as := strings.TrimSuffix(parameters["as"], "List"); as {
		case "", "Table", "PartialObjectMetadata":
			f.as = as
			return f
		}
	}
	return f
}

// one is an object in this form.
func (f form) one(r *resource, o feed.Object, now time.Time) any {
	switch f.as {
	case "Table":
		return f.table(r, []feed.Object{o}, o.GetResourceVersion(), now)
	case "PartialObjectMetadata":
		return metadataOf(o)
	}
	return o
}

// list is a list in this form.
func (f form) list(r *resource, objects []feed.Object, version uint64, now time.Time) any {
	meta := metav1.ListMeta{ResourceVersion: strconv.FormatUint(version, 10)}
	switch f.as {
	case "Table":
		return f.table(r, objects, meta.ResourceVersion, now)
	case "PartialObjectMetadata":
		list := &metav1.PartialObjectMetadataList{TypeMeta: metaType("PartialObjectMetadataList"), ListMeta: meta, Items: []metav1.PartialObjectMetadata{}}
		for _, o := range objects {
			list.Items = append(list.Items, *metadataOf(o))
		}
		return list
	}
	return objectList{TypeMeta: coreType(r.kind + "List"), ListMeta: meta, Items: objects}
}

// objectList is a list of any kind.
type objectList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []feed.Object `json:"items"`
}

func (f form) table(r *resource, objects []feed.Object, version string, now time.Time) *metav1.Table {
	t := &metav1.Table{
		TypeMeta: metaType("Table"), ListMeta: metav1.ListMeta{ResourceVersion: version},
		ColumnDefinitions: r.columns, Rows: []metav1.TableRow{},
	}
	for _, o := range objects {
		row := metav1.TableRow{Cells: r.row(o, now)}
		switch f.include {
		case "Object":
			row.Object = runtime.RawExtension{Object: o}
		case "None":
		default:
			row.Object = runtime.RawExtension{Object: metadataOf(o)}
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func metadataOf(o feed.Object) *metav1.PartialObjectMetadata {
	meta := o.(metav1.ObjectMetaAccessor).GetObjectMeta().(*metav1.ObjectMeta)
	return &metav1.PartialObjectMetadata{TypeMeta: metaType("PartialObjectMetadata"), ObjectMeta: *meta}
}

func metaType(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: kind}
}
