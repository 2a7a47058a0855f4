package sql

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/sql/catalog"
	"chaperone.dev/chaperone/internal/sql/parser"
)

// pool is shared by all tests of the package: workers take seconds to warm up.
var pool lazyPool

// A lazyPool starts when it is first used: the process that only coordinates
// fuzzing needs none.
type lazyPool struct {
	once sync.Once
	dir  string
	pool *parser.Pool
}

func (l *lazyPool) Parse(ctx context.Context, text string) (*parser.Result, error) {
	l.once.Do(l.start)
	return l.pool.Parse(ctx, text)
}

func (l *lazyPool) start() {
	var err error
	if l.dir, err = os.MkdirTemp("", "parserworker"); err != nil {
		panic(err)
	}
	worker := filepath.Join(l.dir, "parserworker")
	build := exec.Command("go", "build", "-o", worker, "./parser/parserworker") // without the race detector
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("build the worker: %v\n%s", err, out))
	}
	if l.pool, err = parser.NewPool(parser.Config{Command: []string{worker}, Workers: runtime.NumCPU(), Spares: 1, Queue: 1000}); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := l.pool.Ready(ctx); err != nil {
		panic(err)
	}
}

func (l *lazyPool) close() {
	if l.pool != nil {
		l.pool.Close()
	}
	if l.dir != "" {
		_ = os.RemoveAll(l.dir)
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	fuzzing, worker := flag.Lookup("test.fuzz").Value.String() != "", flag.Lookup("test.fuzzworker").Value.String() == "true"
	if !fuzzing || worker {
		pool.once.Do(pool.start) // an input may take ten seconds at most, starting more
	}
	code := m.Run()
	pool.close()
	os.Exit(code)
}

func newTestAnalyzer(t testing.TB) *Analyzer {
	t.Helper()
	a, err := New(Config{Parser: &pool, CuratedFunctions: []string{"public.vouched"}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func judge(t testing.TB, a *Analyzer, cat *catalog.Snapshot, text string) *Statement {
	t.Helper()
	st, err := a.Analyze(context.Background(), text, cat)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return st
}

// relation describes a table by its columns, as "name type" each: the type is
// text unless given.
func relation(oid uint32, schema, name string, kind catalog.RelationKind, columns ...string) catalog.Relation {
	r := catalog.Relation{OID: oid, Schema: schema, Name: name, Kind: kind}
	for i, c := range columns {
		column := catalog.Column{
			Number: int16(i + 1), TypeOID: 25, TypeSchema: "pg_catalog", TypeName: "text", Typmod: -1, TypeKind: "b", CanSelect: true,
		}
		var typ string
		fmt.Sscan(c, &column.Name, &typ)
		if typ != "" {
			column.TypeName = typ
			column.TypeOID = map[string]uint32{"int4": 23, "varchar": 1043, "bpchar": 1042, "numeric": 1700, "bool": 16, "timestamptz": 1184, "date": 1082, "regclass": 2205, "name": 19, "oid": 26, "jsonb": 3802}[typ]
		}
		r.Columns = append(r.Columns, column)
	}
	return r
}

func pkey(r catalog.Relation, columns ...string) catalog.Relation {
	r.Constraints = append(r.Constraints, catalog.Constraint{Kind: "p", Columns: columns})
	return r
}

// testCatalog is a shop: customers with secrets, orders, views, partitions, and
// objects that shadow pg_catalog's.
func testCatalog(t testing.TB, change ...func(*catalog.Contents)) *catalog.Snapshot {
	t.Helper()
	customers := pkey(relation(1, "public", "customers", "r", "id int4", "name", "email", "ssn varchar", "card"), "id")
	customers.Columns[3].Typmod, customers.Columns[3].CanSelect = 15, false
	customers.Columns[4].CanSelect = false
	customers.Constraints = append(customers.Constraints,
		catalog.Constraint{Kind: "u", Columns: []string{"name", "ssn"}}, catalog.Constraint{Kind: "u", Columns: []string{"email"}})
	orders := pkey(relation(2, "public", "orders", "r", "id int4", "customer_id int4", "customer_ssn", "total numeric", "at timestamptz"), "id")
	orders.Constraints = append(orders.Constraints,
		catalog.Constraint{Kind: "f", Columns: []string{"customer_id"}, References: 1, Referenced: []string{"id"}},
		catalog.Constraint{Kind: "f", Columns: []string{"customer_ssn"}, References: 1, Referenced: []string{"ssn"}})
	part := relation(4, "public", "events_1", "r", "secret", "id int4")
	part.Parents = []uint32{3}
	clean := relation(5, "public", "clean", "v", "id int4")
	clean.Definition, clean.Sources = " SELECT id\n   FROM public.orders;", []catalog.Source{{Relation: 2, Column: "id"}}
	dirty := relation(6, "public", "dirty", "v", "id int4", "s")
	dirty.Definition, dirty.Sources = " SELECT id,\n    (c.*)::text AS s\n   FROM public.customers c;", []catalog.Source{{Relation: 1, Column: "id"}}
	over := relation(7, "public", "over", "v", "id int4")
	over.Definition, over.Sources = " SELECT id\n   FROM public.dirty;", []catalog.Source{{Relation: 6, Column: "id"}}
	calls := relation(8, "public", "calls", "v", "id int4", "m")
	calls.Definition, calls.Sources = " SELECT id, public.mystery(id) AS m\n   FROM public.orders;", []catalog.Source{{Relation: 2, Column: "id"}}
	chosen := relation(16, "public", "chosen", "v", "id int4")
	chosen.Definition, chosen.Sources = " SELECT id\n   FROM public.customers\n  WHERE (card ~~ '4%'::text);", []catalog.Source{{Relation: 1, Column: "card"}, {Relation: 1, Column: "id"}}
	computed := relation(17, "public", "computed", "m", "id int4", "long bool", "name", "n int4", "again")
	computed.Definition = " SELECT c.id,\n    (length(c.ssn::text) > 3) AS long,\n    c.name,\n    1 AS n,\n    d.s AS again\n   FROM (public.customers c\n     JOIN public.dirty d USING (id));"
	computed.Sources = []catalog.Source{{Relation: 1, Column: "id"}, {Relation: 1, Column: "ssn"}, {Relation: 1, Column: "name"}, {Relation: 6, Column: "id"}, {Relation: 6, Column: "s"}}
	chosenTwice := relation(18, "public", "chosen_twice", "v", "id int4")
	chosenTwice.Definition, chosenTwice.Sources = " SELECT id\n   FROM public.chosen;", []catalog.Source{{Relation: 16, Column: "id"}}
	untold := relation(19, "public", "untold", "v", "id int4")
	untold.Definition, untold.Sources = " SELECT id\n   FROM public.customers;", []catalog.Source{{Relation: 1, Column: "id"}, {Relation: 1, Column: "ssn"}}
	split := relation(30, "public", "split", "v", "id int4", "n int4")
	split.Definition, split.Sources = " SELECT id,\n    generate_series(1, length(ssn::text)) AS n\n   FROM public.customers;", []catalog.Source{{Relation: 1, Column: "id"}, {Relation: 1, Column: "ssn"}}
	cards, card4 := relation(31, "public", "cards", "p", "id int4", "card"), relation(32, "public", "cards_4", "r", "id int4", "card")
	cards.PartitionedBy, card4.Parents = []string{"card"}, []uint32{31}
	members := relation(34, "public", "members", "r", "id int4", "tenant int4")
	members.Constraints = []catalog.Constraint{{Kind: "f", Columns: []string{"tenant"}, References: 33, Referenced: []string{"id"}, Cascades: true}}
	members.Triggers = []catalog.Trigger{{Name: "say"}}
	generated := pkey(relation(9, "public", "people", "r", "id int4", "ssn", "last4", "name"), "id")
	generated.Columns[2].Generated, generated.Columns[2].From = true, []string{"ssn"}
	ruled := relation(10, "public", "ruled", "r", "id int4")
	ruled.HasRules = true
	triggered := relation(11, "public", "audited", "r", "id int4", "note")
	triggered.Triggers = []catalog.Trigger{{Name: "audit", SecurityDefiner: true}}
	typed := relation(12, "public", "typed", "r", "id int4", "mood", "tag", "place")
	typed.Columns[1].TypeSchema, typed.Columns[1].TypeName, typed.Columns[1].TypeKind, typed.Columns[1].OwnType = "public", "mood", "e", "public.mood"
	typed.Columns[2].OwnType = "public.tag" // a domain over text
	typed.Columns[3].TypeSchema, typed.Columns[3].TypeName, typed.Columns[3].OwnType = "public", "place", "public.place"
	contents := catalog.Contents{
		ServerVersion: 180004, Database: "shop", User: "app", SearchPath: []string{"pg_catalog", "public"},
		Relations: []catalog.Relation{
			customers, orders, relation(3, "public", "events", "p", "id int4", "secret"), part, clean, dirty, over, calls, chosen, computed, chosenTwice, untold, split, generated, ruled,
			triggered, typed, cards, card4, relation(33, "public", "tenants", "r", "id int4"), members,
			relation(13, "crm", "customers", "r", "id int4", "ssn"),
			relation(14, "public", "remote", "f", "id int4"),
			relation(15, "public", "seq", "S", "last_value", "log_cnt", "is_called bool"),
			relation(20, "pg_catalog", "pg_class", "r", "oid oid", "relname name", "relnamespace oid"),
			relation(21, "pg_catalog", "pg_stats", "v", "tablename name", "most_common_vals"),
			relation(22, "information_schema", "columns", "v", "table_name", "column_name"),
		},
		Types: []catalog.Type{{Schema: "public", Name: "mood", Kind: "e"}, {Schema: "public", Name: "tag", Kind: "d"}},
		Routines: []catalog.Routine{
			{Schema: "public", Name: "mystery"}, {Schema: "public", Name: "vouched"}, {Schema: "public", Name: "upper"},
			{Schema: "hidden", Name: "lower"}, {Schema: "public", Name: "length", OwnTypes: true},
			{Schema: "public", Name: "similarity", Extension: "pg_trgm"},
		},
		Operators: []catalog.Operator{
			{Schema: "public", Name: "~~~"}, {Schema: "public", Name: "<=", OwnTypes: true}, {Schema: "public", Name: "%", Extension: "pg_trgm"},
		},
	}
	for _, f := range change {
		f(&contents)
	}
	s, err := catalog.New(contents)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type (
	catalogContents = catalog.Contents
	catalogCast     = catalog.Cast
)
