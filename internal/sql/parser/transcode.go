package parser

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A transcoder turns the grammar's JSON into the wire form of pg.ParseResult.
//
// The grammar can write protobuf itself, but visits each of the 270 members of
// Node twice for every node that it writes, which costs more than parsing. Its
// JSON has the same content. Tests hold the two against one another, byte by
// byte. Whatever the transcoder does not know is an error, never left out.
type transcoder struct {
	root  *message
	known map[protoreflect.FullName]*message
}

// A message is one type of the tree: its fields by their name in JSON.
type message struct{ fields map[string]*field }

type field struct {
	number protowire.Number
	kind   protoreflect.Kind
	list   bool
	of     *message          // of a message
	values map[string]uint64 // of an enumeration
}

var errTree = errors.New("malformed tree")

func newTranscoder() *transcoder {
	t := &transcoder{known: map[protoreflect.FullName]*message{}}
	t.root = t.message((*pg.ParseResult)(nil).ProtoReflect().Descriptor())
	return t
}

func (t *transcoder) message(d protoreflect.MessageDescriptor) *message {
	if m := t.known[d.FullName()]; m != nil {
		return m
	}
	m := &message{fields: make(map[string]*field, d.Fields().Len())}
	t.known[d.FullName()] = m
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		f := &field{number: fd.Number(), kind: fd.Kind(), list: fd.IsList()}
		if fd.Message() != nil {
			f.of = t.message(fd.Message())
		}
		if e := fd.Enum(); e != nil {
			f.values = make(map[string]uint64, e.Values().Len())
			for j := range e.Values().Len() {
				f.values[string(e.Values().Get(j).Name())] = uint64(e.Values().Get(j).Number())
			}
		}
		m.fields[fd.JSONName()] = f
	}
	return m
}

// tree transcodes text, which must be one ParseResult and nothing else.
func (t *transcoder) tree(text string) ([]byte, error) {
	r := reader{rest: text, wire: make([]byte, 0, len(text)/2)}
	if err := r.object(t.root); err != nil {
		return nil, err
	}
	if r.rest != "" {
		return nil, fmt.Errorf("%w: %d bytes are left over", errTree, len(r.rest))
	}
	return r.wire, nil
}

// A reader appends to wire what it reads from rest.
type reader struct {
	rest string
	wire []byte
}

// take reads c, if it comes next.
func (r *reader) take(c byte) bool {
	if r.rest == "" || r.rest[0] != c {
		return false
	}
	r.rest = r.rest[1:]
	return true
}

func (r *reader) expect(c byte) error {
	if !r.take(c) {
		return fmt.Errorf("%w: no %q before %.20q", errTree, c, r.rest)
	}
	return nil
}

func (r *reader) object(m *message) error {
	if err := r.expect('{'); err != nil || r.take('}') {
		return err
	}
	for {
		name, err := r.text()
		if err != nil {
			return err
		}
		f := m.fields[name]
		if f == nil {
			return fmt.Errorf("%w: unknown field %.40q", errTree, name)
		}
		if err := r.expect(':'); err != nil {
			return err
		}
		if err := r.field(f); err != nil {
			return err
		}
		if r.take('}') {
			return nil
		}
		if err := r.expect(','); err != nil {
			return err
		}
	}
}

func (r *reader) field(f *field) error {
	if !f.list {
		return r.value(f)
	}
	if f.of == nil {
		return fmt.Errorf("%w: a list of %s", errTree, f.kind)
	}
	if err := r.expect('['); err != nil || r.take(']') {
		return err
	}
	for {
		if err := r.value(f); err != nil || r.take(']') {
			return err
		}
		if err := r.expect(','); err != nil {
			return err
		}
	}
}

// value appends one value with its tag. Zero scalars are left out, as in proto3.
func (r *reader) value(f *field) error {
	switch f.kind {
	case protoreflect.MessageKind:
		r.wire = protowire.AppendTag(r.wire, f.number, protowire.BytesType)
		start := len(r.wire)
		if err := r.object(f.of); err != nil {
			return err
		}
		r.prefix(start)
	case protoreflect.StringKind:
		s, err := r.text()
		if err != nil {
			return err
		}
		if s != "" {
			r.wire = protowire.AppendTag(r.wire, f.number, protowire.BytesType)
			r.wire = protowire.AppendString(r.wire, s)
		}
	default:
		v, err := r.scalar(f)
		if err != nil {
			return err
		}
		if v != 0 {
			r.wire = protowire.AppendTag(r.wire, f.number, protowire.VarintType)
			r.wire = protowire.AppendVarint(r.wire, v)
		}
	}
	return nil
}

// prefix puts the length of what was appended since start before it.
func (r *reader) prefix(start int) {
	length := uint64(len(r.wire) - start)
	n := protowire.SizeVarint(length)
	r.wire = append(r.wire, make([]byte, n)...)
	copy(r.wire[start+n:], r.wire[start:])
	protowire.AppendVarint(r.wire[start:start], length)
}

func (r *reader) scalar(f *field) (uint64, error) {
	if f.kind == protoreflect.EnumKind {
		name, err := r.text()
		v, known := f.values[name]
		if err == nil && !known {
			err = fmt.Errorf("%w: unknown value %.40q", errTree, name)
		}
		return v, err
	}
	word := r.rest[:len(r.rest)-len(strings.TrimLeft(r.rest, "-0123456789truefals"))]
	r.rest = r.rest[len(word):]
	var v uint64
	var err error
	switch f.kind {
	case protoreflect.BoolKind:
		switch word {
		case "true":
			v = 1
		case "false":
		default:
			err = errTree
		}
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		var i int64
		i, err = strconv.ParseInt(word, 10, map[protoreflect.Kind]int{protoreflect.Int32Kind: 32, protoreflect.Int64Kind: 64}[f.kind])
		v = uint64(i)
	case protoreflect.Uint32Kind:
		v, err = strconv.ParseUint(word, 10, 32)
	case protoreflect.Uint64Kind:
		v, err = strconv.ParseUint(word, 10, 64)
	default:
		err = errTree
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %.40q is no %s", errTree, word, f.kind)
	}
	return v, nil
}

// text reads a string.
func (r *reader) text() (string, error) {
	if r.rest == "" || r.rest[0] != '"' {
		return "", fmt.Errorf("%w: no string before %.20q", errTree, r.rest)
	}
	escaped := false
	for i := 1; i < len(r.rest); i++ {
		switch r.rest[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			literal := r.rest[:i+1]
			r.rest = r.rest[i+1:]
			if !escaped {
				return plain(literal[1:i])
			}
			var s string
			if json.Unmarshal([]byte(literal), &s) != nil {
				return "", fmt.Errorf("%w: a string", errTree)
			}
			return plain(s)
		}
	}
	return "", fmt.Errorf("%w: a string without an end", errTree)
}

func plain(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("%w: a string that is not UTF-8", errTree)
	}
	return s, nil
}
