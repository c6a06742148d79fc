package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/berth-node/berth/internal/errdefs"
)

// Load reads a file over the defaults. The error of a file with faults has one line for each, with file, line and key, and
// is an ErrInvalidArgument; that of a file that is not there is os.ErrNotExist.
func Load(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c := Default()
	if err := decode(path, text, &c); err != nil {
		return Config{}, err
	}
	return c, nil
}

// decoder keeps where each key stands, so that a fault that shows only later can still name the line.
type decoder struct {
	file   string
	lines  map[string]int // key → line
	faults []fault
}

// fault is one thing that is wrong; line 0 is the file as a whole.
type fault struct {
	line int
	text string
}

func decode(file string, text []byte, c *Config) error {
	d := &decoder{file: file, lines: map[string]int{}}
	y := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	err := y.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil // nothing but comments
	}
	if err != nil {
		// The parser's words begin with "yaml: line 3: ".
		return fmt.Errorf("%s: %s: %w", file, strings.TrimPrefix(err.Error(), "yaml: "), errdefs.ErrInvalidArgument)
	}
	if err := y.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		d.fault(0, "", "more than one YAML document")
	}
	d.value(doc.Content[0], reflect.ValueOf(c).Elem(), "")
	if len(d.faults) == 0 {
		c.check(func(key, words string) { d.fault(d.line(key), key, words) })
	}
	if len(d.faults) == 0 {
		return nil
	}
	return summary(d.faults)
}

// summary makes an error of faults, in the order of the file.
func summary(faults []fault) error {
	slices.SortFunc(faults, func(a, b fault) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.text, b.text))
	})
	var texts []string
	for _, f := range faults {
		texts = append(texts, f.text)
	}
	return fmt.Errorf("%s: %w", strings.Join(texts, "\n"), errdefs.ErrInvalidArgument)
}

// line returns where a key stands, or the nearest one above it that is in the file.
func (d *decoder) line(key string) int {
	for key != "" {
		if n, ok := d.lines[key]; ok {
			return n
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
	return 0
}

func (d *decoder) fault(line int, key, words string) {
	at := d.file
	if line > 0 {
		at += ":" + strconv.Itoa(line)
	}
	if key != "" {
		words = key + ": " + words
	}
	d.faults = append(d.faults, fault{line, at + ": " + words})
}

// value puts a node into v, whose key is given.
func (d *decoder) value(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if key != "" {
		if _, known := d.lines[key]; !known {
			d.lines[key] = n.Line
		}
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, key, func(name string, value *yaml.Node, full string) {
			field, ok := fieldOf(v, name)
			if !ok {
				d.fault(d.lines[full], full, "unknown key; there are "+strings.Join(keysOf(v.Type()), ", "))
				return
			}
			d.value(value, field, full)
		})
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		d.mapping(n, key, func(name string, value *yaml.Node, full string) {
			element := reflect.New(v.Type().Elem()).Elem()
			d.value(value, element, full)
			m.SetMapIndex(reflect.ValueOf(name), element)
		})
		v.Set(m)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fault(n.Line, key, "want a list, as [a, b], not "+describe(n))
			return
		}
		s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			d.value(item, s.Index(i), fmt.Sprintf("%s[%d]", key, i))
		}
		v.Set(s)
	default:
		d.scalar(n, v, key)
	}
}

// mapping calls f for each key, with its full name.
func (d *decoder) mapping(n *yaml.Node, key string, f func(name string, value *yaml.Node, full string)) {
	if n.Kind != yaml.MappingNode {
		d.fault(n.Line, key, "want keys with values, not "+describe(n))
		return
	}
	var seen []string
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i].Value
		full := strings.TrimPrefix(key+"."+name, ".")
		d.lines[full] = n.Content[i].Line
		if slices.Contains(seen, name) {
			d.fault(n.Content[i].Line, full, "is there twice")
			continue
		}
		seen = append(seen, name)
		f(name, n.Content[i+1], full)
	}
}

// scalar takes only what is written as its type is: a duration without a unit, or a number as a string, is a mistake.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, key string) {
	wrong := func(want string) { d.fault(n.Line, key, "want "+want+", not "+describe(n)) }
	if v.Type() == reflect.TypeFor[time.Duration]() {
		span, err := time.ParseDuration(n.Value)
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" || err != nil {
			wrong(`a time with a unit, as "5s" or "2m"`)
			return
		}
		v.SetInt(int64(span))
		return
	}
	var want, tag string
	switch v.Kind() {
	case reflect.String:
		want, tag = "a string", "!!str"
	case reflect.Bool:
		want, tag = "true or false", "!!bool"
	case reflect.Int:
		want, tag = "a whole number", "!!int"
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != tag || n.Decode(v.Addr().Interface()) != nil {
		wrong(want)
	}
}

// describe returns a node in the words of an error.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys with values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.ShortTag() == "!!null":
		return "nothing"
	}
	const shown = 60
	if len(n.Value) > shown {
		return strconv.Quote(n.Value[:shown]) + "…"
	}
	return strconv.Quote(n.Value)
}

// fieldOf returns the field that a key of the file belongs to.
func fieldOf(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("yaml") == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func keysOf(t reflect.Type) (keys []string) {
	for i := range t.NumField() {
		keys = append(keys, t.Field(i).Tag.Get("yaml"))
	}
	return keys
}
