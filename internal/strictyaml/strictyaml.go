// Package strictyaml decodes YAML into structs and reports every fault at once,
// each with file, line, column and the path of the value. Unknown keys,
// duplicate keys, anchors, aliases, merge keys, several documents and values of
// the wrong kind are faults; nothing is guessed.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// MaxBytes bounds one document.
const MaxBytes = 4 << 20

// A Position is a place in a file; lines and columns count from 1.
type Position struct {
	File         string
	Line, Column int
}

// String returns file:line:column.
func (p Position) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column) }

// A Fault is one thing wrong in a document.
type Fault struct {
	Position
	Path    string // dotted, for example resources[0].address; "" for the document
	Message string
}

// Error returns "file:line:col: path: message".
func (f Fault) Error() string {
	if f.Path == "" {
		return f.Position.String() + ": " + f.Message
	}
	return f.Position.String() + ": " + f.Path + ": " + f.Message
}

// Faults is every fault found, in document order. It is an error.
type Faults []Fault

// Error returns one fault a line.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Err returns nil when there are no faults, else fs.
func (fs Faults) Err() error {
	if len(fs) == 0 {
		return nil
	}
	return fs
}

// A Document remembers where each value stood, so that later checks can point
// at it.
type Document struct {
	file string
	at   map[string]Position
}

// Fault returns a fault at the value of path, or at its nearest parent that is
// in the file.
func (d *Document) Fault(path, format string, args ...any) Fault {
	return Fault{Position: d.At(path), Path: path, Message: fmt.Sprintf(format, args...)}
}

// At returns the position of the value at path, or of its nearest parent that
// is in the file. For a block scalar it is the line of the indicator (| or >);
// its text begins on the next line.
func (d *Document) At(path string) Position {
	for p := path; ; {
		if pos, ok := d.at[p]; ok {
			return pos
		}
		if p == "" {
			return Position{File: d.file, Line: 1, Column: 1}
		}
		if i := strings.LastIndexAny(p, ".["); i >= 0 {
			p = p[:i]
		} else {
			p = ""
		}
	}
}

// A NodeDecoder is a type that decodes itself from a node that has already been
// checked for aliases and duplicates. It returns messages without a position.
type NodeDecoder interface {
	DecodeNode(n *yaml.Node) error
}

// Decode decodes the one document in data into the struct that into points to.
// Fields are named by their yaml tag, or else by their lower-cased name; "-" is
// left out. Supported: structs, pointers, slices, maps with string keys,
// strings, bools, integers, time.Duration (with d for days), any and
// NodeDecoder. When the document cannot be read at all, Decode still returns a
// Document.
func Decode(file string, data []byte, into any) (*Document, Faults) {
	d := &decoder{doc: &Document{file: file, at: map[string]Position{}}}
	if len(data) > MaxBytes {
		d.fault(nil, "", "is %d bytes; the limit is %d", len(data), MaxBytes)
		return d.doc, d.faults
	}
	reader := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	if err := reader.Decode(&root); err != nil {
		if errors.Is(err, io.EOF) {
			d.fault(nil, "", "is empty")
		} else {
			d.syntax(err)
		}
		return d.doc, d.faults
	}
	if err := reader.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		d.fault(nil, "", "holds more than one document; split it into files")
	}
	if len(root.Content) == 0 {
		d.fault(nil, "", "is empty")
		return d.doc, d.faults
	}
	d.value(root.Content[0], "", reflect.ValueOf(into).Elem())
	return d.doc, d.faults
}

type decoder struct {
	doc    *Document
	faults Faults
}

func (d *decoder) fault(n *yaml.Node, path, format string, args ...any) {
	f := Fault{Position: Position{d.doc.file, 1, 1}, Path: path, Message: fmt.Sprintf(format, args...)}
	if n != nil {
		f.Line, f.Column = n.Line, n.Column
	}
	d.faults = append(d.faults, f)
}

// syntax turns yaml's own "yaml: line 3: …" into a fault at that line.
func (d *decoder) syntax(err error) {
	f := Fault{Position: Position{d.doc.file, 1, 1}, Message: strings.TrimPrefix(err.Error(), "yaml: ")}
	if n, _ := fmt.Sscanf(f.Message, "line %d:", &f.Line); n == 1 {
		f.Message = strings.TrimSpace(f.Message[strings.Index(f.Message, ":")+1:])
	}
	d.faults = append(d.faults, f)
}

func (d *decoder) value(n *yaml.Node, path string, v reflect.Value) {
	d.doc.at[path] = Position{d.doc.file, n.Line, n.Column}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.fault(n, path, "anchors and aliases are not allowed; write the value out")
		return
	}
	if v.CanAddr() {
		if own, ok := v.Addr().Interface().(NodeDecoder); ok {
			if err := own.DecodeNode(n); err != nil {
				d.fault(n, path, "%s", err)
			}
			return
		}
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		d.duration(n, path, v)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, path, v.Elem())
	case reflect.Struct:
		d.structure(n, path, v)
	case reflect.Map:
		d.mapping(n, path, v)
	case reflect.Slice:
		d.sequence(n, path, v)
	default:
		d.scalar(n, path, v)
	}
}

func (d *decoder) structure(n *yaml.Node, path string, v reflect.Value) {
	fields, names := map[string]reflect.Value{}, []string{}
	for f, fv := range v.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "" {
			name = strings.ToLower(f.Name)
		}
		if name == "-" || !f.IsExported() {
			continue
		}
		fields[name], names = fv, append(names, name)
	}
	d.pairs(n, path, func(key, value *yaml.Node, at string) {
		field, ok := fields[key.Value]
		if !ok {
			d.fault(key, at, "unknown key; known here: %s", strings.Join(names, ", "))
			return
		}
		d.value(value, at, field)
	})
}

func (d *decoder) mapping(n *yaml.Node, path string, v reflect.Value) {
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(n, path, func(key, value *yaml.Node, at string) {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(value, at, e)
		v.SetMapIndex(reflect.ValueOf(key.Value).Convert(v.Type().Key()), e)
	})
}

// pairs calls f for each key and value of a mapping, after refusing duplicates.
func (d *decoder) pairs(n *yaml.Node, path string, f func(key, value *yaml.Node, at string)) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, path, "must be a mapping (key: value), not %s", describe(n))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		at := key.Value
		if path != "" {
			at = path + "." + key.Value
		}
		switch {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!merge":
			d.fault(key, at, "keys must be plain names; merge keys are not allowed")
		case seen[key.Value]:
			d.fault(key, at, "is given twice")
		default:
			seen[key.Value] = true
			f(key, n.Content[i+1], at)
		}
	}
}

func (d *decoder) sequence(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.fault(n, path, "must be a list, not %s", describe(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, e := range n.Content {
		d.value(e, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
	}
}

func (d *decoder) scalar(n *yaml.Node, path string, v reflect.Value) {
	if v.Kind() != reflect.Interface && n.Kind != yaml.ScalarNode {
		d.fault(n, path, "must be %s, not %s", kindName(v), describe(n))
		return
	}
	if v.Kind() == reflect.String && n.Tag != "!!str" {
		d.fault(n, path, "must be a string, not %s; put it in quotes", describe(n))
		return
	}
	// yaml itself would quietly cut 1.5 to 1 for an integer.
	whole := !v.CanInt() && !v.CanUint() || n.Tag == "!!int"
	if err := n.Decode(v.Addr().Interface()); err != nil || !whole {
		d.fault(n, path, "must be %s, not %s", kindName(v), describe(n))
	}
}

func (d *decoder) duration(n *yaml.Node, path string, v reflect.Value) {
	t, err := ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		d.fault(n, path, "must be a duration such as 30s, 5m, 1h or 90d, not %s", describe(n))
		return
	}
	v.SetInt(int64(t))
}

// ParseDuration is time.ParseDuration that also knows whole days ("90d").
// Negative durations are an error.
func ParseDuration(s string) (time.Duration, error) {
	t, err := time.Duration(0), error(nil)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		if _, err = fmt.Sscanf(days, "%d", &n); err == nil && fmt.Sprint(n) == days && n >= 0 && n <= 36500 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
		return 0, fmt.Errorf("%q is not a number of days", s)
	}
	if t, err = time.ParseDuration(s); err == nil && t < 0 {
		err = fmt.Errorf("%q is negative", s)
	}
	return t, err
}

func kindName(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number, 0 or more"
	case reflect.Float64:
		return "a number"
	default:
		return "a string"
	}
}

// describe never prints a value: it could be a secret in the wrong place.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!str":
		return "a string"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "a date"
	}
	return "this value"
}
