package sql

import (
	"reflect"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// below must come by exactly what protobuf's own reflection comes by, with
// every field of every message set.
func TestEveryMessageBelowIsVisited(t *testing.T) {
	t.Parallel()
	visited := 0
	for _, d := range reachable(pg.File_pg_query_proto.Messages()) {
		empty, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if d.IsMapEntry() || err != nil || shapes()[reflect.TypeOf(empty.Zero().Interface())] == nil {
			continue // not a part of a tree
		}
		for _, f := range fieldsOf(d) {
			m := empty.New()
			want := 1
			switch {
			case f.IsList() && f.Message() != nil:
				want = 2
				list := m.NewField(f).List()
				list.Append(list.NewElement())
				list.Append(list.NewElement())
				m.Set(f, protoreflect.ValueOfList(list))
			case f.Message() != nil:
				m.Set(f, m.NewField(f))
			default:
				want = 0
			}
			got := 0
			below(m.Interface(), func(inner proto.Message) bool {
				got++
				if inner.ProtoReflect().Descriptor() != f.Message() {
					t.Errorf("%s.%s: came by a %T", d.Name(), f.Name(), inner)
				}
				return true
			})
			if visited += got; got != want {
				t.Errorf("%s.%s: %d messages, %d visited", d.Name(), f.Name(), want, got)
			}
		}
	}
	if visited < 1_000 {
		t.Errorf("only %d were visited", visited)
	}
}
