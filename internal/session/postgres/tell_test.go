package postgres

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql"
)

// tellingSchema holds what tells of a masked column without showing it: views
// with as many rows as a value has parts, partitions that a value chooses, and
// triggers that rows far from the one changed fire.
const tellingSchema = `
CREATE SCHEMA tell;
CREATE TABLE tell.people (id int PRIMARY KEY, name text, ssn text, score int);
INSERT INTO tell.people SELECT i, 'p' || i, '999-00-' || (1000 + i), i * 7 FROM generate_series(1, 9) i;
CREATE FUNCTION tell.rows(n int) RETURNS SETOF int LANGUAGE sql IMMUTABLE AS 'SELECT generate_series(1, n)';
CREATE FUNCTION tell.twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
CREATE VIEW tell.parted_text AS SELECT id, unnest(string_to_array(ssn, '-')) IS NULL AS n FROM tell.people;
CREATE VIEW tell.compared AS SELECT id, generate_series(1, score) > 0 AS n FROM tell.people;
CREATE VIEW tell.vouched AS SELECT id, tell.rows(score) AS n FROM tell.people;
CREATE VIEW tell.vouched_in AS SELECT id, abs(tell.rows(score)) > 3 AS n FROM tell.people;
CREATE VIEW tell.filtered AS SELECT id, count(*) FILTER (WHERE ssn LIKE '%1007') > 0 AS n FROM tell.people GROUP BY id;
CREATE VIEW tell.ranked AS SELECT id, rank() OVER (ORDER BY score DESC) > 1 AS n FROM tell.people;
CREATE VIEW tell.doubled AS SELECT id, tell.twice(score) AS n FROM tell.people;
CREATE TABLE tell.parted (id int, ssn text) PARTITION BY LIST (ssn);
CREATE TABLE tell.one PARTITION OF tell.parted FOR VALUES IN ('999-00-1001');
CREATE TABLE tell.rest PARTITION OF tell.parted DEFAULT PARTITION BY RANGE (lower(ssn));
CREATE TABLE tell.upper PARTITION OF tell.rest FOR VALUES FROM ('999-00-1007') TO ('a');
CREATE TABLE tell.lower PARTITION OF tell.rest DEFAULT;
INSERT INTO tell.parted SELECT id, ssn FROM tell.people;
CREATE VIEW tell.of_one AS SELECT id FROM tell.one;
CREATE VIEW tell.placed AS SELECT id, tableoid AS at FROM tell.parted;
CREATE VIEW tell.unplaced AS SELECT id FROM tell.parted;
CREATE TABLE tell.tenants (id int PRIMARY KEY, label text);
INSERT INTO tell.tenants SELECT i, 'x' FROM generate_series(1, 9) i;
CREATE TABLE tell.members (id int PRIMARY KEY, tenant int REFERENCES tell.tenants ON UPDATE CASCADE ON DELETE CASCADE, ssn text);
INSERT INTO tell.members SELECT id, id, ssn FROM tell.people;
CREATE FUNCTION tell.say() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'gone: %', OLD.ssn; RETURN NULL; END $$;
CREATE TRIGGER say AFTER UPDATE OR DELETE ON tell.members FOR EACH ROW EXECUTE FUNCTION tell.say();
CREATE TABLE tell.guarded (id int PRIMARY KEY, ssn text);
INSERT INTO tell.guarded SELECT id, ssn FROM tell.people;
ALTER TABLE tell.guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON tell.guarded USING (ssn LIKE '%1007');
GRANT USAGE ON SCHEMA tell TO app;
GRANT SELECT (id, name) ON tell.people TO app;
GRANT SELECT (id), UPDATE (id), DELETE ON tell.parted, tell.one, tell.rest, tell.upper, tell.guarded TO app;
GRANT SELECT (id, tableoid) ON tell.parted, tell.rest TO app;
GRANT SELECT, UPDATE, INSERT, DELETE ON tell.tenants TO app;
GRANT SELECT ON tell.parted_text, tell.compared, tell.vouched, tell.vouched_in, tell.filtered, tell.ranked, tell.doubled, tell.of_one, tell.placed, tell.unplaced TO app;
`

// telling is a gateway before that schema, which masks what is masked in it.
func telling(t *testing.T) *gateway {
	t.Helper()
	realAnalyzer(t)
	vouching, err := sql.New(sql.Config{Parser: judge.pool, CuratedFunctions: []string{"tell.rows(integer)", "tell.twice(integer)"}})
	if err != nil {
		t.Fatal(err)
	}
	var masks []access.Mask
	for _, column := range []string{"people.ssn", "people.score", "parted.ssn", "members.ssn", "guarded.ssn"} {
		masks = append(masks, access.Mask{Column: "tell." + column})
	}
	return start(t, "18", onLoopback, func(g *gateway, _ *Config, _ *Deps) {
		g.setResource("orders", func(r *Resource) { r.Analyzer = vouching })
		g.policy.setMasks(masks...)
		g.policy.set(func(access.Request) access.Decision { return allowed(access.Obligations{Masks: masks}) })
	})
}

// TestWhatTellsOfAMaskedColumn: what shows no masked value, and yet tells of
// one, is refused by name. Control: straight at the database it tells.
func TestWhatTellsOfAMaskedColumn(t *testing.T) {
	t.Parallel()
	g := telling(t)
	if err := g.pg.Exec(t.Context(), "orders", tellingSchema); err != nil {
		t.Fatal(err)
	}
	w, straight := g.wire(t), g.straightWire(t)
	for _, c := range []struct{ text, tells, message string }{
		// views
		{"select id from tell.parted_text where id = 7", "SELECT 3", "in unnest(), which returns rows"},
		{"select id from tell.compared where id = 7", "SELECT 49", "in generate_series(), which returns rows"},
		{"select id from tell.vouched where id = 7", "SELECT 49", "in rows(), which returns rows"},
		{"select id from tell.vouched_in where id = 7", "SELECT 49", "in rows(), which returns rows"},
		{"select id, n from tell.filtered where id = 7", "row 7,t", "in FILTER"},
		{"select id, n from tell.ranked where id = 9", "row 9,f", "in PARTITION BY or ORDER BY of a window"},
		// partitions
		{"select id from tell.one", "row 1", "would tell of tell.parted.ssn"},
		{"select id from tell.upper where id = 7", "row 7", "would tell of tell."},
		{"select id from tell.of_one", "row 1", "would tell of the value"},
		{"select tableoid::regclass as at from tell.parted where id = 1", "row tell.one", "tell.parted.ssn"},
		{"select at::regclass from tell.placed where id = 1", "row tell.one", "shows the partitions of rows"},
		{"update tell.one set id = id where id = 1", "UPDATE 1", "would tell of tell.parted.ssn"},
		{"delete from tell.upper where id = 1", "DELETE 0", "would tell of tell."},
		{"explain (costs off) select id from tell.parted", "Seq Scan on one", "tell.parted.ssn"},
		{"explain (costs off) select id from tell.unplaced", "Seq Scan on one", "tell.parted.ssn"},
		{"copy tell.one (id) to stdout", "COPY 1", "would tell of tell.parted.ssn"},
		// triggers of rows that follow
		{"delete from tell.tenants where id = 1", "notice gone: 999-00-1001", "whose trigger say may show masked values"},
		{"update tell.tenants set id = 12 where id = 2", "notice gone: 999-00-1002", "whose trigger say may show masked values"},
		{"insert into tell.tenants values (3) on conflict (id) do update set id = 13", "notice gone: 999-00-1003", "whose trigger say may show masked values"},
		{"merge into tell.tenants t using (values (4)) v (i) on t.id = v.i when matched then delete", "notice gone: 999-00-1004", "whose trigger say may show masked values"},
	} {
		if got := strings.Join(straight.ask("begin; "+c.text+"; rollback"), "\n"); !strings.Contains(got, c.tells) {
			t.Errorf("control: %s answers %q, which does not tell %q", c.text, got, c.tells)
		}
		w.send(&pgproto3.Query{String: c.text})
		e, ok := w.receive().(*pgproto3.ErrorResponse)
		if !ok || e.Code != sqlstateDenied || !strings.Contains(e.Message, c.message) || !strings.Contains(e.Detail, "masked-field") || e.Hint == "" {
			t.Errorf("%s: got %+v, want %q", c.text, e, c.message)
		}
		if ok {
			w.until(1)
		}
	}
	for text, want := range map[string][]string{
		"select id, n from tell.doubled where id = 7":                                    ok("columns id,n", "row 7,", "SELECT 1"),
		"select id from tell.parted where id = 7":                                        ok("columns id", "row 7", "SELECT 1"),
		"select id from tell.unplaced where id = 7":                                      ok("columns id", "row 7", "SELECT 1"),
		"select tableoid::regclass as at from tell.tenants where id = 7":                 ok("columns at", "row tell.tenants", "SELECT 1"),
		"update tell.tenants set label = 'y' where id = 7":                               ok("UPDATE 1"),
		"insert into tell.tenants values (7) on conflict (id) do update set label = 'z'": ok("INSERT 0 1"),
		// row security is the owner's own rule about who sees which rows, also where it goes by a masked column
		"select id from tell.guarded": ok("columns id", "row 7", "SELECT 1"),
	} {
		if got := w.ask(text); !slices.Equal(got, want) {
			t.Errorf("twin: %s: got %q", text, got)
		}
	}
	if all := fmt.Sprint(g.recordedRows()); strings.Contains(all, "999-00") {
		t.Error("the recording holds a masked value")
	}
}
