package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"
)

// A chunk is what stands between two lines "---".
type chunk struct {
	text []byte
	line int // of its first line, from 0
}

// split cuts text into chunks, before each line "---". A parser would do it too, but stop at the first fault.
func split(text []byte) (chunks []chunk) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	start, from, n := 0, 0, 0
	for at := 0; at < len(text); n++ {
		end := len(text)
		if i := bytes.IndexByte(text[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if line := text[at:end]; at > start && bytes.HasPrefix(line, []byte("---")) && (len(line) == 3 || strings.IndexByte(" \t\r\n", line[3]) >= 0) {
			chunks = append(chunks, chunk{text[start:at], from})
			start, from = at, n
		}
		at = end
	}
	return append(chunks, chunk{text[start:], from})
}

// A document is one value, and where each part of it stands.
type document struct {
	value any // as encoding/json makes it, with json.Number
	at    position
}

type lineFault struct {
	line   int
	reason string
}

// documents reads a chunk: a YAML document, or any number of JSON values.
func (c chunk) documents() ([]document, []lineFault) {
	if docs, ok := c.json(); ok {
		return docs, nil
	}
	// The value is made by the parser that every Kubernetes client uses, which reads YAML 1.1 (a plain yes is true); it keeps no
	// lines, for which there is the other.
	text, err := yaml.YAMLToJSON(c.text)
	if err != nil {
		return nil, []lineFault{c.syntax(err)}
	}
	if bytes.Equal(bytes.TrimSpace(text), []byte("null")) {
		return nil, nil // nothing but comments
	}
	var value any
	numbers := json.NewDecoder(bytes.NewReader(text))
	numbers.UseNumber()
	if err := numbers.Decode(&value); err != nil {
		return nil, []lineFault{{c.line + 1, err.Error()}}
	}
	lines := yamlv3.NewDecoder(bytes.NewReader(c.text))
	var root yamlv3.Node
	if err := lines.Decode(&root); err != nil || len(root.Content) == 0 {
		return nil, []lineFault{c.syntax(errors.Join(err, errors.New("it can be read in more than one way")))}
	}
	docs := []document{{value, position{&root, c.line}.into()}}
	// Without it, what follows a line "..." would be left out without a word.
	var next yamlv3.Node
	switch err := lines.Decode(&next); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return docs, []lineFault{c.syntax(err)}
	default:
		return docs, []lineFault{{c.line + next.Line, `a document must begin with a line "---"`}}
	}
	return docs, nil
}

var inLine = regexp.MustCompile(`^(?:yaml: |error converting YAML to JSON: )*(?:line (\d+): )?`)

// syntax makes a fault of a parser's error.
func (c chunk) syntax(err error) lineFault {
	words, _, _ := strings.Cut(err.Error(), "\n")
	m := inLine.FindStringSubmatch(words)
	n, _ := strconv.Atoi(m[1]) // none: the first line
	// What the parser misses at the end, it says to be missing behind it.
	n = min(n, breaks(c.text)+1)
	return lineFault{c.line + max(n, 1), words[len(m[0]):]}
}

// breaks counts the ends of lines as the parser does.
func breaks(text []byte) (n int) {
	for _, end := range []string{"\n", "\r", "\u0085", "\u2028", "\u2029"} {
		n += bytes.Count(text, []byte(end))
	}
	return n - bytes.Count(text, []byte("\r\n"))
}

// json reads a chunk that is nothing but JSON.
func (c chunk) json() (docs []document, ok bool) {
	if text := bytes.TrimLeft(c.text, "- \t\r\n"); !bytes.HasPrefix(text, []byte("{")) {
		return nil, false
	}
	// What stands before the brace is "---" at most; taken for blanks, lines and offsets stay.
	text := bytes.Clone(c.text)
	if bytes.HasPrefix(text, []byte("---")) {
		copy(text, "   ")
	}
	values, tokens := json.NewDecoder(bytes.NewReader(text)), json.NewDecoder(bytes.NewReader(text))
	values.UseNumber()
	lines := lineStarts(text)
	for {
		var value any
		err := values.Decode(&value)
		if errors.Is(err, io.EOF) {
			return docs, len(docs) > 0
		}
		if err != nil {
			return nil, false // it may still be YAML, or a fault of it
		}
		root := jsonNode(tokens, lines)
		docs = append(docs, document{value, position{root, c.line}})
	}
}

func lineStarts(text []byte) (starts []int) {
	for i, b := range text {
		if b == '\n' {
			starts = append(starts, i+1)
		}
	}
	return starts
}

// jsonNode makes of the next value, which is known to be well, what the YAML parser makes of YAML.
func jsonNode(tokens *json.Decoder, lines []int) *yamlv3.Node {
	token, err := tokens.Token()
	n := &yamlv3.Node{Kind: yamlv3.ScalarNode, Line: 1 + sort.SearchInts(lines, int(tokens.InputOffset()))}
	if err != nil {
		return n
	}
	switch t := token.(type) {
	case json.Delim:
		n.Kind = yamlv3.SequenceNode
		if t == '{' {
			n.Kind = yamlv3.MappingNode
		}
		for tokens.More() {
			n.Content = append(n.Content, jsonNode(tokens, lines)) // of an object: key, value, key…
		}
		_, _ = tokens.Token() // the end
	case string:
		n.Value = t
	default:
		n.Value = fmt.Sprint(t)
	}
	return n
}

// A position is where a part of a document stands. The zero position is nowhere.
type position struct {
	node *yamlv3.Node
	base int // lines before the chunk
}

func (p position) line() int {
	if p.node == nil {
		return 0
	}
	return p.base + max(p.node.Line, 1)
}

// into is the value itself, behind what only leads to it.
func (p position) into() position {
	for p.node != nil {
		switch {
		case p.node.Kind == yamlv3.DocumentNode && len(p.node.Content) > 0:
			p.node = p.node.Content[0]
		case p.node.Kind == yamlv3.AliasNode:
			p.node = p.node.Alias
		default:
			return p
		}
	}
	return p
}

// field returns where the key of a mapping stands, and its value.
func (p position) field(name string) (key, value position) {
	in := p.into().node
	if in == nil || in.Kind != yamlv3.MappingNode {
		return position{}, position{}
	}
	for i := 0; i+1 < len(in.Content); i += 2 {
		if in.Content[i].Value == name {
			return position{in.Content[i], p.base}, position{in.Content[i+1], p.base}
		}
	}
	for i := 0; i+1 < len(in.Content); i += 2 {
		if in.Content[i].Tag == "!!merge" || in.Content[i].Value == "<<" {
			merged := position{in.Content[i+1], p.base}
			if key, value = merged.field(name); key.node != nil {
				return key, value
			}
		}
	}
	return position{}, position{}
}

// item returns where an item of a list stands.
func (p position) item(i int) position {
	in := p.into().node
	if in == nil || in.Kind != yamlv3.SequenceNode || i < 0 || i >= len(in.Content) {
		return position{}
	}
	return position{in.Content[i], p.base}
}

// lineOf returns where a field stands, whose path is as in spec.containers[0].env or metadata.labels[a.b/c], or what of it is
// nearest.
func (p position) lineOf(field string) int {
	line := p.line()
	for field != "" {
		var name string
		if rest, bracket := strings.CutPrefix(field, "["); bracket {
			name, field, _ = strings.Cut(rest, "]")
		} else {
			field = strings.TrimPrefix(field, ".")
			end := strings.IndexAny(field, ".[")
			if end < 0 {
				end = len(field)
			}
			name, field = field[:end], field[end:]
		}
		key, value := p.field(name)
		if i, err := strconv.Atoi(name); err == nil && key.node == nil {
			key, value = p.item(i), p.item(i)
		}
		if key.node == nil {
			return line
		}
		line, p = key.line(), value
	}
	return line
}

type duplicate struct {
	line  int
	field string
}

// duplicates returns the keys that are in a mapping twice, of which the value has one only.
func (p position) duplicates() (twice []duplicate) {
	var walk func(n *yamlv3.Node, path string)
	walk = func(n *yamlv3.Node, path string) {
		switch n.Kind { // what an alias leads to is looked at where it stands
		case yamlv3.DocumentNode, yamlv3.SequenceNode:
			for i, item := range n.Content {
				walk(item, fmt.Sprintf("%s[%d]", path, i))
			}
		case yamlv3.MappingNode:
			seen := make(map[string]bool, len(n.Content)/2)
			for i := 0; i+1 < len(n.Content); i += 2 {
				key, full := n.Content[i], strings.TrimPrefix(path+"."+n.Content[i].Value, ".")
				if key.Kind == yamlv3.ScalarNode && seen[key.Value] {
					twice = append(twice, duplicate{p.base + key.Line, full})
				}
				seen[key.Value] = true
				walk(n.Content[i+1], full)
			}
		}
	}
	if p.node != nil {
		walk(p.node, "")
	}
	return twice
}
