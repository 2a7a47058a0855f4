package catalog_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chaperone.dev/chaperone/internal/localserver"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

const schema = `
CREATE ROLE app LOGIN PASSWORD 'app';
CREATE SCHEMA crm; CREATE SCHEMA hidden;
CREATE TYPE flavour AS ENUM ('sweet'); ALTER EXTENSION plpgsql ADD TYPE flavour;
CREATE FUNCTION vouched(text) RETURNS text LANGUAGE sql AS 'SELECT $1'; ALTER EXTENSION plpgsql ADD FUNCTION vouched(text);
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN card_number AS varchar(19) CHECK (value ~ '^[0-9 ]+$');
CREATE DOMAIN own_card AS card_number NOT NULL;
CREATE TABLE customers (
  id int PRIMARY KEY, name text NOT NULL, email text, taste flavour, ssn char(11) COLLATE "C" UNIQUE, card own_card, "Mood" mood, moods mood[],
  last4 text GENERATED ALWAYS AS (right(ssn, 4)) STORED, gone int, CHECK (name <> ssn), EXCLUDE USING btree (email WITH =));
ALTER TABLE customers DROP COLUMN gone;
CREATE UNIQUE INDEX ON customers (lower(name)) WHERE ssn IS NOT NULL;
CREATE TABLE crm.orders (id int PRIMARY KEY, customer int REFERENCES customers, customer_ssn char(11) REFERENCES customers (ssn) ON DELETE SET NULL);
CREATE TABLE events (id int, at date) PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE VIEW names AS SELECT id, lower(name) AS name FROM customers;
CREATE VIEW names_again AS SELECT n.*, o.id AS o FROM names n JOIN crm.orders o USING (id);
CREATE MATERIALIZED VIEW mv AS SELECT count(*) FROM events;
CREATE FUNCTION hidden.lower(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION public.f(customers) RETURNS text LANGUAGE sql AS 'SELECT ''x''';
CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER audit BEFORE UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION audit();
CREATE OPERATOR public.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq);
CREATE FUNCTION public.int_of(text) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE CAST (text AS int) WITH FUNCTION public.int_of(text) AS ASSIGNMENT;
CREATE TABLE ruled (id int); CREATE RULE r AS ON INSERT TO ruled DO INSTEAD NOTHING;
CREATE FUNCTION pg_catalog.reverse(int, text[]) RETURNS text LANGUAGE sql AS 'SELECT $1::text';
CREATE FUNCTION several(int) RETURNS SETOF int LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION constant(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
ALTER TABLE crm.orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON crm.orders USING (customer = constant(id));
CREATE POLICY adding ON crm.orders FOR INSERT WITH CHECK (true);
CREATE TABLE folded (id int CHECK (constant(1) > 0)) PARTITION BY RANGE (constant(id));
CREATE INDEX ON folded (id) WHERE constant(2) > 0;
CREATE INDEX ON folded (abs(id));
CREATE STATISTICS s ON (constant(id)) FROM folded;
GRANT SELECT (id, name, email) ON customers TO app;
GRANT USAGE ON SCHEMA crm TO app;
`

func load(t *testing.T, version string) (*catalog.Snapshot, *pgx.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	pg, err := localserver.StartPostgres(ctx, filepath.Join(t.TempDir(), "pg"), version)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pg.Close() })
	if err := pg.Exec(ctx, "postgres", schema); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, pg.DSN("app", "app", "postgres")+"&search_path=crm,hidden,public")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(ctx)) })
	s, err := catalog.Load(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	return s, conn
}

func TestLoad(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			s, conn := load(t, version)
			if got := fmt.Sprintln(s.ServerVersion()/10000, s.User(), s.Database(), s.SearchPath()); got != version+" app postgres [pg_catalog crm public]\n" {
				t.Errorf("session: %s", got)
			}
			checkCustomers(t, s.Relation("public", "customers"))
			checkRelations(t, s)
			checkObjects(t, s)
			checkUnnamed(t, s)
			began := time.Now()
			again, err := catalog.Load(t.Context(), conn)
			if err != nil || again.Version() != s.Version() {
				t.Errorf("loaded again: %v, version differs: %v", err, again.Version() != s.Version())
			}
			t.Logf("loading took %v", time.Since(began))
			var path string
			if err := conn.QueryRow(t.Context(), "SHOW search_path").Scan(&path); err != nil || path != "crm,hidden,public" {
				t.Errorf("the connection was left with search_path %q, %v", path, err)
			}
		})
	}
}

func checkCustomers(t *testing.T, r *catalog.Relation) {
	t.Helper()
	if r == nil {
		t.Fatal("no customers")
	}
	want := map[string]string{
		"id":    `{"number":1,"name":"id","type_oid":23,"type_schema":"pg_catalog","type_name":"int4","typmod":-1,"type_kind":"b","not_null":true,"can_select":true}`,
		"ssn":   `{"number":5,"name":"ssn","type_oid":1042,"type_schema":"pg_catalog","type_name":"bpchar","typmod":15,"type_kind":"b","collation":"pg_catalog.\"C\"","can_select":false}`,
		"card":  `{"number":6,"name":"card","type_oid":1043,"type_schema":"pg_catalog","type_name":"varchar","typmod":23,"type_kind":"b","own_type":"public.own_card","can_select":false}`,
		"last4": `{"number":9,"name":"last4","type_oid":25,"type_schema":"pg_catalog","type_name":"text","typmod":-1,"type_kind":"b","generated":true,"from":["ssn"],"can_select":false}`,
	}
	for name, text := range want {
		if b, _ := json.Marshal(r.Column(name)); string(b) != text {
			t.Errorf("%s is\n%s, not\n%s", name, b, text)
		}
	}
	taste, moods := r.Column("taste"), r.Column("moods")
	if taste.OwnType != "public.flavour" || taste.Extension != "plpgsql" || moods.TypeKind != "e" || moods.OwnType != "public._mood" {
		t.Errorf("taste %+v\nmoods %+v", taste, moods)
	}
	if r.Column("gone") != nil || len(r.Columns) != 9 {
		t.Errorf("%d columns", len(r.Columns))
	}
	var constraints []string
	for _, c := range r.Constraints {
		constraints = append(constraints, c.Kind+":"+strings.Join(c.Columns, ","))
	}
	for _, want := range []string{"p:id", "u:ssn", "c:name,ssn", "x:email", "u:name,ssn"} {
		if !slices.Contains(constraints, want) {
			t.Errorf("constraints %v lack %s", constraints, want)
		}
	}
	if len(r.Triggers) != 1 || !r.Triggers[0].SecurityDefiner {
		t.Errorf("triggers %+v", r.Triggers)
	}
}

func checkRelations(t *testing.T, s *catalog.Snapshot) {
	t.Helper()
	customers, events := s.Relation("public", "customers"), s.Relation("public", "events")
	orders := s.Resolve("orders")
	if orders == nil || orders.Schema != "crm" || s.Resolve("pg_class") == nil || s.Resolve("nothing") != nil {
		t.Errorf("orders resolve to %+v", orders)
	}
	if children := s.Children(events.OID); len(children) != 1 || s.RelationByOID(children[0]).Name != "events_2025" || events.Kind != catalog.PartitionedTable {
		t.Errorf("children of events: %v", children)
	}
	if folded := s.Relation("public", "folded"); !slices.Equal(events.PartitionedBy, []string{"at"}) || !slices.Equal(folded.PartitionedBy, []string{"id"}) || customers.PartitionedBy != nil {
		t.Errorf("partitioned by %v, %v, %v", events.PartitionedBy, folded.PartitionedBy, customers.PartitionedBy)
	}
	if f := s.Followers(customers.OID); !slices.Equal(f, []uint32{orders.OID}) {
		t.Errorf("followers %v", f)
	}
	references := 0
	for _, c := range orders.Constraints {
		if c.Kind == "f" && c.References == customers.OID && slices.Equal(c.Columns, []string{"customer_ssn"}) && slices.Equal(c.Referenced, []string{"ssn"}) {
			references++
		}
	}
	if references != 1 {
		t.Errorf("constraints of orders: %+v", orders.Constraints)
	}
	names, again := s.Relation("public", "names"), s.Relation("public", "names_again")
	if !strings.Contains(names.Definition, "FROM public.customers") || !slices.Equal(names.Sources, []catalog.Source{{Relation: customers.OID, Column: "id"}, {Relation: customers.OID, Column: "name"}}) || len(again.Sources) != 3 {
		t.Errorf("names: %+v\nagain: %+v", names, again)
	}
	if !s.Relation("public", "ruled").HasRules || names.HasRules {
		t.Error("rules are not seen")
	}
	if v := s.Relation("information_schema", "columns"); v == nil || v.Definition != "" {
		t.Errorf("information_schema.columns: %+v", v)
	}
}

// checkUnnamed looks at what a read runs without naming it.
func checkUnnamed(t *testing.T, s *catalog.Snapshot) {
	t.Helper()
	if p := s.Relation("crm", "orders").Policies; !slices.Equal(p, []string{"(customer = public.constant(id))"}) {
		t.Errorf("policies: %q", p)
	}
	if f := s.Relation("public", "folded").Folded; !slices.Equal(f, []string{"(public.constant(1) > 0)", "(public.constant(2) > 0)", "public.constant(id)"}) {
		t.Errorf("folded: %q", f)
	}
	if r := s.Routines("reverse"); len(r) != 1 || r[0].Schema != "pg_catalog" || r[0].Arguments != "integer, text[]" || r[0].Set {
		t.Errorf("what was put into pg_catalog: %+v", r)
	}
}

func checkObjects(t *testing.T, s *catalog.Snapshot) {
	t.Helper()
	if r := s.Routines("lower"); len(r) != 1 || r[0].Schema != "hidden" || r[0].OwnTypes {
		t.Errorf("lower: %+v", r)
	}
	if r := s.Routines("several"); len(r) != 1 || !r[0].Set {
		t.Errorf("several: %+v", r)
	}
	if r := s.Routines("f"); len(r) != 1 || !r[0].OwnTypes {
		t.Errorf("f: %+v", r)
	}
	if r := s.Routines("vouched"); len(r) != 1 || r[0].Extension != "plpgsql" {
		t.Errorf("vouched: %+v", r)
	}
	if o := s.Operators("==="); len(o) != 1 || o[0].OwnTypes {
		t.Errorf("===: %+v", o)
	}
	if m := s.Type("public", "mood"); m == nil || m.Kind != "e" || s.Type("public", "flavour").Extension != "plpgsql" || s.Type("public", "customers") != nil {
		t.Errorf("mood: %+v", m)
	}
	own := 0
	for _, c := range s.Casts() {
		if !c.OwnTypes {
			own++
			if c.Source != "text" || c.Target != "integer" || !c.Implicit {
				t.Errorf("cast %+v", c)
			}
		}
	}
	if own != 1 {
		t.Errorf("casts: %+v", s.Casts())
	}
}

func TestNewRefusesContradictions(t *testing.T) {
	t.Parallel()
	twice := catalog.Relation{OID: 1, Schema: "public", Name: "t"}
	other := twice
	other.OID = 2
	for name, c := range map[string]catalog.Contents{
		"name twice":   {Relations: []catalog.Relation{twice, other}},
		"oid twice":    {Relations: []catalog.Relation{twice, {OID: 1, Schema: "public", Name: "u"}}},
		"column twice": {Relations: []catalog.Relation{{OID: 1, Schema: "s", Name: "t", Columns: []catalog.Column{{Name: "a"}, {Name: "a"}}}}},
	} {
		if _, err := catalog.New(c); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
