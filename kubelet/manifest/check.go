package manifest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
)

// typeOf is what a document of each kind must look like.
var typeOf = map[Kind]reflect.Type{
	Pod:       reflect.TypeFor[v1.Pod](),
	ConfigMap: reflect.TypeFor[v1.ConfigMap](),
	Secret:    reflect.TypeFor[v1.Secret](),
	Claim:     reflect.TypeFor[v1.PersistentVolumeClaim](),
	Volume:    reflect.TypeFor[v1.PersistentVolume](),
}

// kind looks at apiVersion and kind; the kind is empty for a list.
func (d *decoder) kind(doc document, fields map[string]any) (Kind, bool) {
	version, _ := fields["apiVersion"].(string)
	name, _ := fields["kind"].(string)
	fault := func(field, format string, args ...any) (Kind, bool) {
		d.fault(doc.at.lineOf(field), field, fmt.Sprintf(format, args...))
		return "", false
	}
	list := strings.HasSuffix(name, "List") && (name == "List" || typeOf[Kind(strings.TrimSuffix(name, "List"))] != nil)
	switch {
	case name == "":
		return fault("kind", "want the kind of the object: %s", kindWords)
	case typeOf[Kind(name)] == nil && !list:
		if slices.Contains(laterKinds, name) {
			return fault("kind", "a %s is not run by this version of berth; it takes %s: declare the pod itself", name, kindWords)
		}
		return fault("kind", "a %s means nothing to a node by itself, which takes %s", name, kindWords)
	case version != "v1":
		return fault("apiVersion", "want v1, which is the version of every %s, not %s", name, describe(fields["apiVersion"]))
	case list:
		return "", true
	}
	return Kind(name), true
}

// laterKinds make pods, and have their place where a Kind does: what they want becomes objects with keys of their own.
var laterKinds = []string{"Deployment", "ReplicaSet", "ReplicationController", "StatefulSet", "DaemonSet", "Job", "CronJob", "Service", "HorizontalPodAutoscaler"}

const kindWords = "Pod, ConfigMap, Secret, PersistentVolumeClaim and PersistentVolume"

// list takes the items of a List, as "get -o yaml" prints them.
func (d *decoder) list(doc document, fields map[string]any) {
	for name, value := range fields {
		key, at := doc.at.field(name)
		switch items, isList := value.([]any); {
		case name == "apiVersion" || name == "kind" || name == "metadata":
		case name != "items":
			d.fault(key.line(), name, "unknown field; a list has items")
		case !isList && value != nil:
			d.fault(key.line(), name, "want a list, not "+describe(value))
		default:
			for i, item := range items {
				d.document(document{item, at.item(i)})
			}
		}
	}
}

// checker holds a document against the type of its kind, and against the table of fields.
type checker struct {
	d        *decoder
	doc      document
	warnings []string
}

func (c *checker) warn(line int, words string) {
	c.warnings = append(c.warnings, fmt.Sprintf("%s:%d: %s", c.d.file, line, words))
}

// object checks the fields of a struct, and takes out those that are the node's to set.
func (c *checker) object(fields map[string]any, t reflect.Type) { c.fields(fields, t, c.doc.at, "") }

func (c *checker) fields(fields map[string]any, t reflect.Type, at position, path string) {
	known := fieldsOf(t)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value := fields[name]
		key, inner := at.field(name)
		line, full := key.line(), strings.TrimPrefix(path+"."+name, ".")
		if line == 0 {
			line = c.doc.at.lineOf(path)
		}
		field, ok := known[name]
		if !ok {
			c.d.fault(line, full, "unknown field"+hint(name, known))
			continue
		}
		switch rule := table[field.key]; rule.Verdict {
		case Refused:
			if !empty(value) {
				c.d.fault(line, full, "not supported: "+rule.Words)
			}
			continue
		case Set:
			if !empty(value) {
				c.warn(line, full+": ignored: "+rule.Words)
			}
			delete(fields, name)
			continue
		case Ignored:
			if !empty(value) {
				c.warn(line, full+": ignored: "+rule.Words)
			}
		}
		if value == nil {
			delete(fields, name) // as if it were not there
			continue
		}
		c.value(value, field.typ, inner, line, full)
	}
}

// value checks one value; line is where its key stands.
func (c *checker) value(v any, t reflect.Type, at position, line int, path string) {
	if at.line() > 0 {
		line = at.line()
	}
	wrong := func(want string) { c.d.fault(line, path, "want "+want+", not "+describe(v)) }
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		text, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(text, reflect.New(t).Interface())
		}
		if err != nil {
			wrong("a " + t.Name())
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		fields, ok := v.(map[string]any)
		if !ok {
			wrong("fields with values")
			return
		}
		c.fields(fields, t, at, path)
	case reflect.Map:
		c.mapping(v, t, at, path, wrong)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			text, ok := v.(string)
			if _, err := base64.StdEncoding.DecodeString(text); !ok || err != nil {
				c.d.fault(line, path, "want data in base64; as it is, it may be in stringData of a Secret, or data of a ConfigMap")
			}
			return
		}
		items, ok := v.([]any)
		if !ok {
			wrong("a list")
			return
		}
		for i, item := range items {
			c.value(item, t.Elem(), at.item(i), line, fmt.Sprintf("%s[%d]", path, i))
		}
	default:
		if want := scalar(v, t); want != "" {
			wrong(want)
		}
	}
}

func (c *checker) mapping(v any, t reflect.Type, at position, path string, wrong func(string)) {
	entries, ok := v.(map[string]any)
	if !ok {
		wrong("keys with values")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		key, inner := at.field(name)
		if entries[name] == nil && t.Elem().Kind() == reflect.String {
			continue // "KEY:" is an empty value
		}
		c.value(entries[name], t.Elem(), inner, key.line(), fmt.Sprintf("%s[%s]", path, name))
	}
}

// scalar returns what t wants if v is something else.
func scalar(v any, t reflect.Type) (want string) {
	switch t.Kind() {
	case reflect.String:
		if _, ok := v.(string); !ok {
			return "a string (in quotes)"
		}
	case reflect.Bool:
		if _, ok := v.(bool); !ok {
			return "true or false"
		}
	default: // the rest are whole numbers
		n, ok := v.(json.Number)
		if _, err := strconv.ParseInt(n.String(), 10, t.Bits()); !ok || err != nil {
			return "a whole number"
		}
	}
	return ""
}

// empty reports whether a value says nothing, as the "status: {}" that many programs print.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case map[string]any:
		for _, inner := range v {
			if !empty(inner) {
				return false
			}
		}
		return true
	case []any:
		return len(v) == 0
	case string:
		return v == ""
	}
	return false
}

// describe returns a value in the words of a fault.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case map[string]any:
		return "fields with values"
	case []any:
		return "a list"
	case string:
		const shown = 60
		if len(v) > shown {
			return strconv.Quote(v[:shown]) + "…"
		}
		return strconv.Quote(v)
	}
	return fmt.Sprint(v)
}

// structField is a field of an API type.
type structField struct {
	key string // as in the table: the type, a dot, the name
	typ reflect.Type
}

var fieldsCache sync.Map // reflect.Type → map[string]structField

// fieldsOf returns the fields of a struct by the names that they have in documents.
func fieldsOf(t reflect.Type) map[string]structField {
	if known, ok := fieldsCache.Load(t); ok {
		return known.(map[string]structField)
	}
	known := map[string]structField{}
	var gather func(in reflect.Type)
	gather = func(in reflect.Type) {
		for i := range in.NumField() {
			f := in.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if strings.Contains(options, "inline") {
				gather(f.Type)
			} else {
				known[name] = structField{t.Name() + "." + name, f.Type}
			}
		}
	}
	gather(t)
	fieldsCache.Store(t, known)
	return known
}

// hint says what may have been meant by a name that is no field here.
func hint(name string, known map[string]structField) string {
	for other := range known {
		if strings.EqualFold(name, other) {
			return fmt.Sprintf("; it is written %s", other)
		}
	}
	const few = 3
	if places := placesOf()[name]; len(places) > 0 && len(places) <= few {
		return "; it belongs to " + strings.Join(places, " or ")
	}
	return ""
}

// placesOf is where the fields of a Pod may stand, by name.
var placesOf = sync.OnceValue(func() map[string][]string {
	places := map[string][]string{}
	walkFields(typeOf[Pod], "", func(path string, _ structField) bool {
		in, name := "", path
		if i := strings.LastIndexByte(path, '.'); i >= 0 {
			in, name = path[:i], path[i+1:]
		}
		if in != "" && !slices.Contains(places[name], in) {
			places[name] = append(places[name], in)
		}
		return true
	})
	return places
})

// walkFields visits all fields below a type, by path. Where visit says no, nothing below that field is visited; nor is it below
// what the table does not honour.
func walkFields(t reflect.Type, path string, visit func(path string, f structField) bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		if t.Kind() == reflect.Slice {
			path += "[]"
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return
	}
	known := fieldsOf(t)
	for _, name := range slices.Sorted(maps.Keys(known)) {
		f := known[name]
		full := strings.TrimPrefix(path+"."+name, ".")
		if visit(full, f) && table[f.key].Verdict == Honoured {
			walkFields(f.typ, full, visit)
		}
	}
}
