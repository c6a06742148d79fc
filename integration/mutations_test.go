//go:build integration

package integration

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A mutation is a request with one field that an attacker, or a client's fault, has changed.
type mutation struct {
	what string // the field's path and what was done to it
	data []byte // the request on the wire: not all of it could be said by a message of Go
}

// notUTF8 stands in a message, which cannot hold it, for bytes that are no UTF-8; the wire form gets these in its place.
const notUTF8 = "\x01not UTF-8\x01"

var notUTF8Bytes = "\xff\xfe\xfd" + strings.Repeat("\xc0", len(notUTF8)-3)

// hostileStrings are what a name, an ID, a path or any other text is replaced by.
var hostileStrings = map[string]string{
	"empty": "", "a parent": "../x", "many parents": strings.Repeat("../", 20) + "tmp/berth-escape", "root": "/", "dot": ".", "dots": "..",
	"NUL": "a\x00b", "newline": "a\nb", "long": strings.Repeat("x", 10_000), "no UTF-8": notUTF8, "a space": " ", "a percent": "%s%n%00",
	"an option": "--help", "a number": "99999999999999999999", "proc": "/proc/self/fd/1", "null": "null",
}

// mutations returns valid with each field, at any depth, changed in turn by what its kind allows. A field that is not set
// is set.
func mutations(valid proto.Message) []mutation {
	var all []mutation
	root := proto.Clone(valid).ProtoReflect()
	note := func(what string) {
		data, err := proto.Marshal(root.Interface())
		if err != nil {
			panic(err) // valid is the test's own
		}
		data = []byte(strings.ReplaceAll(string(data), notUTF8, notUTF8Bytes))
		all = append(all, mutation{what, data})
	}
	note("nothing")
	mutateMessage(root, "", 0, note)
	return append(all, wireMutations(valid)...)
}

// wireMutations are what no client library writes.
func wireMutations(valid proto.Message) []mutation {
	data, err := proto.Marshal(valid)
	if err != nil {
		panic(err)
	}
	unknown := protowire.AppendTag(nil, 9999, protowire.BytesType)
	unknown = protowire.AppendBytes(unknown, make([]byte, 1000))
	deep := []byte{}
	for range 20_000 { // groups in groups: parsers have stacks
		deep = protowire.AppendTag(deep, 1000, protowire.StartGroupType)
	}
	all := []mutation{
		{"wire: nothing", nil},
		{"wire: an unknown field", append(unknown, data...)},
		{"wire: twice", append(append([]byte{}, data...), data...)},
		{"wire: groups without end", deep},
		{"wire: garbage", []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff garbage")},
		{"wire: a length without end", protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.BytesType), math.MaxUint64)},
	}
	if len(data) > 1 {
		all = append(all, mutation{"wire: cut off", data[:len(data)-1]})
	}
	return all
}

// maxMutationDepth ends where messages can be in themselves.
const maxMutationDepth = 8

func mutateMessage(m protoreflect.Message, path string, depth int, note func(string)) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		was, had := m.Get(f), m.Has(f)
		if had {
			was = cloneValue(m, f, was)
		}
		restore := func() {
			if had {
				m.Set(f, cloneValue(m, f, was))
			} else {
				m.Clear(f)
			}
		}
		at := strings.TrimPrefix(path+"."+string(f.Name()), ".")
		if had {
			m.Clear(f)
			note(at + ": left out")
			restore()
		}
		switch {
		case f.IsMap():
			mutateMap(m, f, at, note, restore)
		case f.IsList():
			mutateList(m, f, at, depth, note, restore)
		case f.Message() != nil:
			m.Set(f, m.NewField(f))
			note(at + ": empty")
			restore()
			if depth < maxMutationDepth {
				mutateMessage(m.Mutable(f).Message(), at, depth+1, note)
			}
			restore()
		default:
			values := hostileValues(f)
			for _, what := range slices.Sorted(maps.Keys(values)) {
				m.Set(f, values[what])
				note(at + ": " + what)
			}
			restore()
		}
	}
}

func mutateMap(m protoreflect.Message, f protoreflect.FieldDescriptor, at string, note func(string), restore func()) {
	put := func(what string, k string, v protoreflect.Value) {
		m.Mutable(f).Map().Set(protoreflect.ValueOfString(k).MapKey(), v)
		note(at + ": " + what)
		restore()
	}
	value := f.MapValue()
	if f.MapKey().Kind() != protoreflect.StringKind || value.Kind() != protoreflect.StringKind {
		return
	}
	for _, what := range slices.Sorted(maps.Keys(hostileStrings)) {
		s := hostileStrings[what]
		put("key "+what, s, protoreflect.ValueOfString("1"))
		put("value "+what, "berth.test/key", protoreflect.ValueOfString(s))
	}
	for i := range 10_000 {
		m.Mutable(f).Map().Set(protoreflect.ValueOfString(fmt.Sprintf("key%d", i)).MapKey(), protoreflect.ValueOfString("v"))
	}
	note(at + ": 10000 entries")
	restore()
}

func mutateList(m protoreflect.Message, f protoreflect.FieldDescriptor, at string, depth int, note func(string), restore func()) {
	if f.Message() == nil {
		values := hostileValues(f)
		for _, what := range slices.Sorted(maps.Keys(values)) {
			m.Mutable(f).List().Append(values[what])
			note(at + ": and " + what)
			restore()
		}
		for range 10_000 {
			m.Mutable(f).List().Append(m.Mutable(f).List().NewElement())
		}
		note(at + ": 10000 entries")
		restore()
		return
	}
	list := m.Mutable(f).List()
	list.Append(list.NewElement())
	note(at + ": and an empty one")
	if n := list.Len(); n > 1 { // the same twice
		list.Set(n-1, list.Get(0))
		note(at + ": the first twice")
	}
	restore()
	if depth < maxMutationDepth {
		list = m.Mutable(f).List()
		if list.Len() == 0 {
			list.Append(list.NewElement())
		}
		mutateMessage(list.Get(0).Message(), at+"[0]", depth+1, note)
		restore()
	}
	list = m.Mutable(f).List()
	for range 5_000 {
		list.Append(list.NewElement())
	}
	note(at + ": 5000 empty ones")
	restore()
}

// hostileValues are the values that a field of a simple kind is set to, in words.
func hostileValues(f protoreflect.FieldDescriptor) map[string]protoreflect.Value {
	values := map[string]protoreflect.Value{}
	switch f.Kind() {
	case protoreflect.StringKind:
		for what, s := range hostileStrings {
			values[what] = protoreflect.ValueOfString(s)
		}
	case protoreflect.BytesKind:
		values["empty"] = protoreflect.ValueOfBytes(nil)
		values["NUL"] = protoreflect.ValueOfBytes([]byte{0})
		values["no UTF-8"] = protoreflect.ValueOfBytes([]byte{0xff, 0xfe})
		values["long"] = protoreflect.ValueOfBytes(make([]byte, 10_000))
	case protoreflect.BoolKind:
		values["true"] = protoreflect.ValueOfBool(true)
		values["false"] = protoreflect.ValueOfBool(false)
	case protoreflect.EnumKind:
		values["unknown"] = protoreflect.ValueOfEnum(9999)
		values["negative"] = protoreflect.ValueOfEnum(-1)
		for i := range f.Enum().Values().Len() {
			v := f.Enum().Values().Get(i)
			if i < 5 {
				values[string(v.Name())] = protoreflect.ValueOfEnum(v.Number())
			}
		}
	case protoreflect.Int32Kind:
		for _, n := range []int32{0, -1, 1, math.MinInt32, math.MaxInt32} {
			values[fmt.Sprint(n)] = protoreflect.ValueOfInt32(n)
		}
	case protoreflect.Uint32Kind:
		for _, n := range []uint32{0, 1, math.MaxInt32 + 1, math.MaxUint32} {
			values[fmt.Sprint(n)] = protoreflect.ValueOfUint32(n)
		}
	case protoreflect.Int64Kind:
		for _, n := range []int64{0, -1, 1, math.MinInt64, math.MaxInt64, math.MaxUint32 + 1} {
			values[fmt.Sprint(n)] = protoreflect.ValueOfInt64(n)
		}
	case protoreflect.Uint64Kind:
		for _, n := range []uint64{0, 1, math.MaxInt64 + 1, math.MaxUint64} {
			values[fmt.Sprint(n)] = protoreflect.ValueOfUint64(n)
		}
	default:
		panic("the CRI has a field of a new kind: " + f.Kind().String())
	}
	return values
}

func cloneValue(m protoreflect.Message, f protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	holder := m.New()
	holder.Set(f, v)
	return proto.Clone(holder.Interface()).ProtoReflect().Get(f)
}
