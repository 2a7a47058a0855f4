package sql

import (
	"iter"
	"reflect"
	"strings"
	"sync"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A shape is one message type of the grammar's tree: where its fields are in
// the Go struct. Walks go by shapes, since protobuf's own Range costs as much
// as everything else that the judge does.
type shape struct {
	id     int // counts from 0
	name   protoreflect.Name
	fields []*shapeField
}

// A shapeField is one field, or the members of a oneof, of which one at most is
// set.
type shapeField struct {
	index   int                          // in the Go struct
	members map[reflect.Type]*shapeField // of a oneof, by the type that wraps each
	id      int                          // within its shape, members included
	name    protoreflect.Name            // of the field
	of      *shape                       // of a message
	list    bool                         // of messages
	enum    protoreflect.EnumDescriptor  // of an enumeration
}

// shapes are those of every message that a tree can hold. They never change.
var shapes = sync.OnceValue(func() map[reflect.Type]*shape {
	known := map[reflect.Type]*shape{}
	shapeOf((*pg.ParseResult)(nil), known)
	return known
})

func shapeOf(m proto.Message, known map[reflect.Type]*shape) *shape {
	t := reflect.TypeOf(m)
	if s := known[t]; s != nil {
		return s
	}
	d := m.ProtoReflect().Descriptor()
	s := &shape{id: len(known), name: d.Name()}
	known[t] = s
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		f := &shapeField{id: i, name: fd.Name(), list: fd.IsList(), enum: fd.Enum()}
		filled := m.ProtoReflect().New()
		filled.Set(fd, filled.NewField(fd))
		value := reflect.ValueOf(filled.Interface()).Elem()
		if fd.Message() != nil {
			one := filled.NewField(fd)
			if f.list {
				one = one.List().NewElement()
			}
			f.of = shapeOf(one.Message().Interface(), known)
		}
		if fd.ContainingOneof() == nil {
			f.index = structField(t, "name="+string(fd.Name()))
			s.fields = append(s.fields, f)
			continue
		}
		index := structField(t, string(fd.ContainingOneof().Name()))
		wrapper := value.Field(index).Elem().Type()
		s.oneof(index).members[wrapper] = f
	}
	return s
}

// oneof is the field of s that holds one of several.
func (s *shape) oneof(index int) *shapeField {
	for _, f := range s.fields {
		if f.members != nil && f.index == index {
			return f
		}
	}
	f := &shapeField{index: index, members: map[reflect.Type]*shapeField{}}
	s.fields = append(s.fields, f)
	return f
}

// structField finds the field of the struct that pointer t points to whose
// protobuf tag says name.
func structField(t reflect.Type, name string) int {
	for i := range t.Elem().NumField() {
		tag := t.Elem().Field(i).Tag
		for part := range strings.SplitSeq(tag.Get("protobuf")+","+tag.Get("protobuf_oneof"), ",") {
			if part == name {
				return i
			}
		}
	}
	panic("the generated type " + t.String() + " has no field " + name)
}

// all yields every field, the members of oneofs among them.
func (s *shape) all() iter.Seq[*shapeField] {
	return func(yield func(*shapeField) bool) {
		for _, f := range s.fields {
			if f.members == nil && !yield(f) {
				return
			}
			for _, member := range f.members {
				if !yield(member) {
					return
				}
			}
		}
	}
}

// each calls visit for every field of m, a pointer to a message of this shape,
// that is set, until visit returns false.
func (s *shape) each(m reflect.Value, visit func(*shapeField, reflect.Value) bool) {
	if m.IsNil() {
		return
	}
	m = m.Elem()
	for _, f := range s.fields {
		v := m.Field(f.index)
		if v.IsZero() {
			continue
		}
		if f.members != nil {
			wrapped := v.Elem()
			f, v = f.members[wrapped.Type()], wrapped.Elem().Field(0)
		}
		if !visit(f, v) {
			return
		}
	}
}

// below calls visit for every message directly in m, until visit returns false.
func below(m proto.Message, visit func(proto.Message) bool) {
	s := shapes()[reflect.TypeOf(m)]
	s.each(reflect.ValueOf(m), func(f *shapeField, v reflect.Value) bool {
		switch {
		case f.of == nil:
			return true
		case !f.list:
			return visit(v.Interface().(proto.Message))
		}
		for i := range v.Len() {
			if !visit(v.Index(i).Interface().(proto.Message)) {
				return false
			}
		}
		return true
	})
}
