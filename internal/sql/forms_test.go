package sql

import (
	"slices"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"chaperone.dev/chaperone/internal/sql/parser"
)

// Every message of the grammar, made empty, and every value of every
// enumeration in it, is looked at: what the tables of forms do not list is
// refused, wherever in a query it stands.
func TestEveryNodeAndValueIsListedOrRefused(t *testing.T) {
	t.Parallel()
	g := newGrammar()
	wrapped := func(m protoreflect.Message) []protoreflect.Message {
		list := []protoreflect.Message{m}
		node := (&pg.Node{}).ProtoReflect()
		for _, f := range fieldsOf(node.Descriptor()) {
			if f.Message() != nil && f.Message().FullName() == m.Descriptor().FullName() {
				node.Set(f, protoreflect.ValueOfMessage(m))
				in := &pg.SelectStmt{WhereClause: &pg.Node{Node: &pg.Node_List{List: &pg.List{Items: []*pg.Node{node.Interface().(*pg.Node)}}}}}
				list = append(list, node, in.ProtoReflect())
			}
		}
		return list
	}
	messages, enums, refused := 0, 0, 0
	for _, d := range reachable(pg.File_pg_query_proto.Messages()) {
		messages++
		if d.IsMapEntry() {
			continue // has no node of its own
		}
		empty, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if err != nil {
			t.Fatal(err)
		}
		form := g.forms[d.Name()]
		mayPass := form == formBound || form == formStatement
		for _, m := range wrapped(empty.New()) {
			if passes := g.check(m.Interface()) == nil; passes && !mayPass {
				t.Errorf("%s passes", d.Name())
			} else if !passes {
				refused++
			}
		}
		if form != formBound || bound[d.Name()] == "*" {
			continue
		}
		for _, f := range fieldsOf(d) {
			if f.Enum() == nil {
				continue
			}
			values := f.Enum().Values()
			for i := range values.Len() + 1 {
				number := protoreflect.EnumNumber(10_000) // one that a later grammar may have
				if i < values.Len() {
					number = values.Get(i).Number()
				}
				if number == 0 {
					continue // is not sent
				}
				enums++
				m := empty.New()
				m.Set(f, protoreflect.ValueOfEnum(number))
				listed := i < values.Len() && g.fields[d.Name()][f.Name()] && g.enums[f.Enum().Name()][values.Get(i).Name()]
				if passes := g.check(m.Interface()) == nil; passes != listed {
					t.Errorf("%s.%s = %d: passes %v, listed %v", d.Name(), f.Name(), number, passes, listed)
				}
			}
		}
	}
	if messages < 250 || enums < 130 || refused < 400 {
		t.Errorf("only %d messages, %d values, %d refusals were looked at", messages, enums, refused)
	}
	// As a statement of its own every node is read-only only if it is empty of effect: a query, or about the session.
	a, cat := newTestAnalyzer(t), testCatalog(t)
	node := (&pg.Node{}).ProtoReflect()
	for _, f := range fieldsOf(node.Descriptor()) {
		node.Set(f, node.NewField(f))
		st, err := a.judgeOne(t.Context(), "", cat, &parser.Result{}, node.Interface().(*pg.Node))
		if err != nil {
			t.Fatal(err)
		}
		name := f.Message().Name()
		if st.Action.ReadOnly && !slices.Contains([]protoreflect.Name{"SelectStmt", "TransactionStmt", "VariableSetStmt", "VariableShowStmt", "ClosePortalStmt", "DeallocateStmt", "UnlistenStmt"}, name) {
			t.Errorf("%s by itself is read-only", name)
		}
		if st.Refusal == nil && g.forms[name] != formBound && g.forms[name] != formStatement && !st.Action.DDL && st.Kind == KindRefused {
			t.Errorf("%s by itself is neither run nor refused", name)
		}
	}
}

// fieldsOf lists the fields of a message.
func fieldsOf(d protoreflect.MessageDescriptor) []protoreflect.FieldDescriptor {
	list := make([]protoreflect.FieldDescriptor, d.Fields().Len())
	for i := range list {
		list[i] = d.Fields().Get(i)
	}
	return list
}

// reachable lists the messages of the grammar, and those inside them.
func reachable(messages protoreflect.MessageDescriptors) []protoreflect.MessageDescriptor {
	var list []protoreflect.MessageDescriptor
	for i := range messages.Len() {
		list = append(list, messages.Get(i))
		list = append(list, reachable(messages.Get(i).Messages())...)
	}
	return list
}
