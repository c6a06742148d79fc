// Package manifest reads what a user declares: YAML or JSON documents become defaulted and validated objects, by
// Kubernetes' own defaults and rules.
//
// It is strict, since a manifest that is half understood runs something else than what was meant. A field that there is not,
// that stands in the wrong place, twice, or with a value of another type, is a fault; so is one that this node does not act
// upon, but for the few that can have no meaning here (a nodeSelector where there is one node), which are a warning. Which is
// which, is one table for all fields ([Fields]). Every fault names file and line.
package manifest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-node/berth/internal/conffile"
	"github.com/berth-node/berth/internal/errdefs"
)

// Kind is the kind of an object.
type Kind string

// The kinds there are.
const (
	Pod       Kind = "Pod"
	ConfigMap Kind = "ConfigMap"
	Secret    Kind = "Secret"
	Claim     Kind = "PersistentVolumeClaim"
	Volume    Kind = "PersistentVolume"
)

// Kinds are all kinds, in the order of the words for users.
var Kinds = []Kind{Pod, ConfigMap, Secret, Claim, Volume}

// Namespaced reports whether objects of the kind are in a namespace. A PersistentVolume is the node's.
func (k Kind) Namespaced() bool { return k != Volume }

// MaxSize bounds the documents of one Decode, in bytes.
const MaxSize = conffile.MaxSize

// A Key names an object, and is its identity: who declares the same key again means the same thing.
type Key struct {
	Kind            Kind
	Namespace, Name string
}

func (k Key) String() string {
	if !k.Kind.Namespaced() {
		return fmt.Sprintf("%s %s", k.Kind, k.Name)
	}
	return fmt.Sprintf("%s %s/%s", k.Kind, k.Namespace, k.Name)
}

// Compare orders keys by kind, namespace and name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name))
}

// An Object is one declared thing. One of the five pointers is set, as Kind says; what it leads to is never changed, so that
// everybody may read it. Of the metadata it has what a user decides; UID, times and status are for who runs it.
type Object struct {
	Key
	Pod       *v1.Pod
	ConfigMap *v1.ConfigMap
	Secret    *v1.Secret
	Claim     *v1.PersistentVolumeClaim
	Volume    *v1.PersistentVolume

	File     string
	Line     int
	Warnings []string // each with file and line

	// Source is what was written, as JSON with sorted keys and without what the node sets. [Restore] makes the object of it
	// again.
	Source []byte
	// Hash is Source's. It does not change with formatting, comments, order of keys or the file's name, nor with the
	// defaults of a later version: what hashes the same was declared the same, and need not be touched. What hashes
	// differently may still mean the same.
	Hash string
}

// A Fault is one thing that is wrong in a document. It is an errdefs.ErrInvalidArgument.
type Fault struct {
	File   string
	Line   int    // 0 is the whole file
	Field  string // as spec.containers[0].image; empty is the whole document
	Reason string
}

func (f *Fault) Error() string {
	at := f.File
	if f.Line > 0 {
		at = fmt.Sprintf("%s:%d", f.File, f.Line)
	}
	if f.Field != "" {
		return fmt.Sprintf("%s: %s: %s", at, f.Field, f.Reason)
	}
	return fmt.Sprintf("%s: %s", at, f.Reason)
}

func (f *Fault) Unwrap() error { return errdefs.ErrInvalidArgument }

// Faults returns all faults in an error of [Decode], or in what wraps or joins such errors.
func Faults(err error) (all []*Fault) {
	switch e := err.(type) {
	case *Fault:
		return []*Fault{e}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			all = append(all, Faults(inner)...)
		}
	case interface{ Unwrap() error }:
		return Faults(e.Unwrap())
	}
	return all
}

// Decode reads the documents in data; file is for the words only. It returns all objects, or an error with all [Faults] of
// all documents, in the order of the lines: documents that are well do not count beside others that are not, since what is
// written in one file is meant together. No document at all is no fault.
func Decode(file string, data []byte) ([]Object, error) {
	d := &decoder{file: file, first: map[Key]int{}}
	switch {
	case len(data) > MaxSize:
		d.fault(0, "", fmt.Sprintf("it has %d bytes, and may have %d", len(data), MaxSize))
	case !utf8.Valid(data):
		d.fault(0, "", "it is not text in UTF-8")
	default:
		for _, chunk := range split(data) {
			d.chunk(chunk)
		}
	}
	if len(d.faults) > 0 {
		return nil, d.err()
	}
	return d.objects, nil
}

// Restore makes an object of the Source of one that Decode returned, perhaps in another version of berth: what was accepted once
// is not judged again, since that would end what runs.
func Restore(kind Kind, source []byte) (Object, error) {
	o := Object{Source: source, Hash: hashOf(source)}
	o.Kind = kind
	if _, err := o.build(source); err != nil {
		return Object{}, fmt.Errorf("restore a %s: %w", kind, err)
	}
	if o.Name == "" {
		return Object{}, fmt.Errorf("restore a %s: it has no name: %w", kind, errdefs.ErrInvalidArgument)
	}
	return o, nil
}

// decoder gathers what comes of all documents.
type decoder struct {
	file    string
	objects []Object
	first   map[Key]int // line of what was declared already
	faults  []*Fault
}

func (d *decoder) fault(line int, field, reason string) {
	d.faults = append(d.faults, &Fault{File: d.file, Line: line, Field: field, Reason: reason})
}

func (d *decoder) err() error {
	slices.SortStableFunc(d.faults, func(a, b *Fault) int { return cmp.Compare(a.Line, b.Line) })
	var errs []error
	for _, f := range d.faults {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

func (d *decoder) chunk(c chunk) {
	docs, err := c.documents()
	for _, f := range err {
		d.fault(f.line, "", f.reason)
	}
	for _, doc := range docs {
		d.document(doc)
	}
}

// document takes one document: an object, or a list of objects.
func (d *decoder) document(doc document) {
	for _, twice := range doc.at.duplicates() {
		d.fault(twice.line, twice.field, "is there twice")
	}
	fields, ok := doc.value.(map[string]any)
	if !ok {
		d.fault(doc.at.line(), "", "want an object with apiVersion and kind, not "+describe(doc.value))
		return
	}
	kind, ok := d.kind(doc, fields)
	if !ok {
		return
	}
	if kind == "" {
		d.list(doc, fields)
		return
	}
	before := len(d.faults)
	object := Object{File: d.file, Line: doc.at.line()}
	object.Kind = kind
	d.object(&object, doc, fields)
	if len(d.faults) > before {
		return
	}
	if line, twice := d.first[object.Key]; twice {
		d.fault(object.Line, "", fmt.Sprintf("%s is declared in line %d already", object.Key, line))
		return
	}
	d.first[object.Key] = object.Line
	d.objects = append(d.objects, object)
}

// object fills in an object, or notes the faults of its document.
func (d *decoder) object(o *Object, doc document, fields map[string]any) {
	c := checker{d: d, doc: doc}
	before := len(d.faults)
	c.object(fields, typeOf[o.Kind])
	if len(d.faults) > before {
		return // what cannot be read cannot be validated
	}
	source, err := json.Marshal(fields) // sorts the keys
	if err != nil {
		d.fault(doc.at.line(), "", err.Error())
		return
	}
	o.Source, o.Hash = source, hashOf(source)
	internal, err := o.build(source)
	if err != nil {
		d.fault(doc.at.line(), "", err.Error())
		return
	}
	warnings, faults := validate(internal)
	for _, f := range faults {
		d.fault(doc.at.lineOf(f.Field), f.Field, f.ErrorBody())
	}
	for _, w := range warnings {
		c.warn(doc.at.lineOf(fieldIn(w)), w)
	}
	o.Warnings = c.warnings
}

func hashOf(source []byte) string {
	sum := sha256.Sum256(source)
	return hex.EncodeToString(sum[:16])
}
