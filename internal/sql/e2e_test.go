package sql

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/internal/localserver"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// e2eSchema holds secrets that are marked, and in mirror the tables as they look
// through masks: what a rewritten query answers must be what the query as it was
// written answers there.
const e2eSchema = `
CREATE ROLE app LOGIN PASSWORD 'app';
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN tag AS text CHECK (value ~ '^t');
CREATE TABLE customers (id int PRIMARY KEY, name text, email varchar(40), ssn varchar(11) UNIQUE, card char(19) COLLATE "C", balance numeric(10,2), mood mood,
  tags tag[], last4 text GENERATED ALWAYS AS (right(ssn, 6)) STORED);
INSERT INTO customers SELECT i, 'name' || i, 'n' || i || '@example.com', 'SECRET-' || i, 'SECRET-CARD-' || i, i * 1000.42, 'ok', ARRAY['t' || i]
FROM generate_series(1, 20) i;
CREATE TABLE orders (id int PRIMARY KEY, customer_id int REFERENCES customers (id), total numeric, note text);
INSERT INTO orders SELECT i, 1 + i % 20, i * 3, 'note' || i FROM generate_series(1, 60) i;
CREATE TABLE events (id int, secret text, at date) PARTITION BY RANGE (id);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);
CREATE TABLE events_2 (at date, id int NOT NULL, secret text);
ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM (10) TO (20);
INSERT INTO events SELECT i, 'SECRET-EVENT-' || i, '2025-01-01' FROM generate_series(1, 19) i;
CREATE VIEW clean AS SELECT id, total FROM orders;
CREATE VIEW dirty AS SELECT id, row_to_json(c) AS j FROM customers c;
CREATE VIEW picked AS SELECT id, name FROM customers WHERE ssn LIKE 'SECRET-1%';
CREATE MATERIALIZED VIEW kept AS SELECT d.id, j ->> 'ssn' AS s, name FROM dirty d JOIN customers USING (id);
CREATE SCHEMA mirror;
CREATE TABLE mirror.customers AS SELECT id, name, email, '***'::varchar(11) AS ssn, '***'::char(19) COLLATE "C" AS card, NULL::numeric(10,2) AS balance, mood,
  tags, '***'::text AS last4 FROM customers;
ALTER TABLE mirror.customers ADD PRIMARY KEY (id);
CREATE TABLE mirror.orders AS TABLE orders;
CREATE TABLE mirror.events AS SELECT id, '***'::text AS secret, at FROM events;
CREATE TABLE mirror.events_1 AS SELECT id, '***'::text AS secret, at FROM events_1;
CREATE TABLE mirror.events_2 AS SELECT at, id, '***'::text AS secret FROM events_2;
CREATE VIEW mirror.clean AS SELECT id, total FROM mirror.orders;
CREATE VIEW mirror.dirty AS SELECT id, NULL::json AS j FROM mirror.customers;
CREATE VIEW mirror.kept AS SELECT id, '***'::text AS s, name FROM mirror.customers;
GRANT SELECT ON orders, clean, picked TO app;
GRANT SELECT (id) ON dirty TO app;
GRANT SELECT (id, name) ON kept TO app;
GRANT SELECT (id, name, email, mood, tags, ctid), UPDATE (name) ON customers TO app;
GRANT SELECT (id, at) ON events, events_1, events_2 TO app;
GRANT INSERT, UPDATE, DELETE ON orders TO app;
ANALYZE;
`

var e2eMasks = masksOf("public.customers.ssn", "public.customers.card", "public.customers.balance", "public.events.secret")

// A target is a real server of one version with three connections: the role
// without the privilege on the secrets, its owner, and its owner at the mirror.
type target struct {
	version string
	cat     *catalog.Snapshot
	app     *pgx.Conn
	owner   *pgx.Conn
	mirror  *pgx.Conn
}

func startTarget(t *testing.T, version string) *target {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	pg, err := localserver.StartPostgres(ctx, filepath.Join(t.TempDir(), "pg"), version)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pg.Close() })
	if err := pg.Exec(ctx, "postgres", e2eSchema); err != nil {
		t.Fatal(err)
	}
	connect := func(user, password, more string) *pgx.Conn {
		conn, err := pgx.Connect(ctx, pg.DSN(user, password, "postgres")+more)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(ctx)) })
		return conn
	}
	target := &target{
		version: version, app: connect("app", "app", ""), owner: connect("postgres", pg.Password, "&statement_timeout=5000"),
		mirror: connect("postgres", pg.Password, "&statement_timeout=5000&search_path=mirror"),
	}
	if target.cat, err = catalog.Load(ctx, target.app); err != nil {
		t.Fatal(err)
	}
	return target
}

func TestServers(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			srv := startTarget(t, version)
			t.Run("rewritten queries", srv.testRewrittenQueries)
			t.Run("role", srv.testRoleCannotReadSecrets)
			t.Run("current of", srv.testCurrentOf)
			t.Run("positions", srv.testPositions)
			t.Run("binding", srv.testBindingAgreesWithServer)
			t.Run("random queries", srv.testNoSecretInRandomQueries)
			t.Run("attacks", srv.testAttacks)
		})
	}
}

// answer runs text and renders its rows, or its error.
func answer(ctx context.Context, conn *pgx.Conn, text string) (string, error) {
	results, err := conn.PgConn().Exec(ctx, text).ReadAll()
	var out strings.Builder
	for _, r := range results {
		for _, f := range r.FieldDescriptions {
			fmt.Fprintf(&out, "%s:%d(%d) ", f.Name, f.DataTypeOID, f.TypeModifier)
		}
		lines := make([]string, len(r.Rows))
		for i, row := range r.Rows {
			for _, v := range row {
				lines[i] += "|" + string(v)
			}
		}
		slices.Sort(lines) // most queries ask for no order
		out.WriteString("\n" + strings.Join(lines, "\n") + "\n")
	}
	return out.String(), err
}

// whole renders an error with everything that a server may put in one.
func whole(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return fmt.Sprintf("%+v", *pgErr)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// readable queries run rewritten, as the role without the privilege, and answer
// what they would if the tables held the masks.
var readableQueries = []string{
	"select * from customers c",
	"select ssn as x from customers",
	"select c::text, row_to_json(c)::text, (c).ssn, c::text from customers c where id < 3",
	"select ssn || '', ssn::text, upper(ssn), concat(ssn, card), coalesce(balance, 1), balance + 1, last4 from customers",
	"select public.customers.ssn, customers.id from public.customers",
	"select count(*), min(ssn), array_agg(card order by id), sum(balance) from customers",
	"select c.ssn, o.total from orders o left join customers c on c.id = o.customer_id where o.total > 30 and c.name like 'name1%'",
	"select x.* from (select id, ssn as s from customers) x join orders o on o.id = x.id",
	"with c as (select * from customers where id in (1, 2)) select ssn, j from c, lateral (select row_to_json(c) ->> 'card' as j) l",
	"with customers as (select * from customers where id = 1) select ssn from customers",
	"with recursive r(id, s) as (select 1, ssn from customers where id = 1 union all select r.id + 1, c.ssn from r join customers c on c.id = r.id + 1 where r.id < 4) select * from r",
	"select ssn from customers union all select name from customers where id = 3",
	"table customers",
	"select * from only customers where id = 3",
	"select a, d from customers c (a, b, c, d) where a = 2",
	"select id, name, max(ssn), grouping(id) from customers group by rollup (id, name)",
	"select ssn, lag(card) over (order by id), row_number() over (partition by name order by id) from customers",
	"select encode(ssn::bytea, 'hex'), md5(card), array[ssn, card], json_build_object('a', ssn)::text from customers where id = 4",
	"select case when id = 1 then ssn else name end from customers",
	"select (select ssn from customers where id = o.customer_id) from orders o where id < 4",
	"select exists (select ssn from customers where id = 1), array(select card from customers order by id)",
	"select * from events order by id, at",
	"select secret from events_1 where id = 3",
	"select * from events_2",
	"select * from customers natural join (select 1 as id, 'x' as z) y",
	"select c.id, j.total from (customers c join orders o using (id)) as j (id, b), customers c where j.id = c.id and j.id < 0 or false",
	"select mood, tags, balance from customers where mood = 'ok' and 't1' = any (tags::text[])",
	"select distinct on (name) name, ssn from customers order by name, id",
	"select c.ssn from clean v join customers c on c.id = v.id",
	"select generate_series(1, 2), ssn from customers where id = 1",
	"select n.nspname, c.relname from pg_catalog.pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relname = 'nothing'",
	"select string_agg(ssn, ', ' order by id desc) filter (where id < 4) from customers",
	"values ((select ssn from customers where id = 2))",
	"select * from dirty where id < 3",
	"select id, ssn from customers where id < 4 for no key update",
	"select c.id, o.note from customers c join orders o on o.customer_id = c.id where c.id < 3 for share of c nowait",
	"select ssn from only (customers) where id = 3",
	"select id, ssn from customers c tablesample bernoulli (100) repeatable (3) where id < 5",
	"select name, ssn, count(*) from customers group by id having max(name) <> ''",
	"select c.name, email, c.card, sum(o.total) from customers c join orders o on o.customer_id = c.id group by 1, c.id order by sum(o.total), name",
	"select count(ctid), min(ssn) from customers where ctid is not null",
	"select k.s, k.name, d.j, o.total from kept k join dirty d using (id) left join orders o on o.id = k.id",
	"select x from (select s || '' as x from public.kept) y",
}

func (srv *target) testRewrittenQueries(t *testing.T) {
	a := newTestAnalyzer(t)
	for _, text := range readableQueries {
		f, r := maskIt(t, a, srv.cat, e2eMasks, text)
		if r != nil {
			t.Errorf("%s: refused: %s", text, r.Message)
			continue
		}
		got, err := answer(t.Context(), srv.app, f.Text)
		if err != nil {
			t.Errorf("%s\nas %s\n%v", text, f.Text, err)
			continue
		}
		want, err := answer(t.Context(), srv.mirror, strings.ReplaceAll(text, "public.", "mirror."))
		if err != nil {
			t.Fatalf("mirror: %s: %v", text, err)
		}
		if got != want {
			t.Errorf("%s\nas %s\nanswered %s\nnot %s", text, f.Text, got, want)
		}
		if strings.Contains(got, "SECRET-") {
			t.Errorf("%s shows a secret", text)
		}
	}
	control, err := answer(t.Context(), srv.owner, "select ssn, card, last4 from customers; select secret from events")
	if err != nil || !strings.Contains(control, "SECRET-7") || !strings.Contains(control, "SECRET-CARD-7") {
		t.Errorf("the secrets are not there to be shown: %v", err)
	}
}

// A cursor over masks can be changed through: the row is the table's own.
func (srv *target) testCurrentOf(t *testing.T) {
	a := newTestAnalyzer(t)
	for _, step := range []struct{ text, want string }{
		{"begin", ""},
		{"declare c cursor for select id, ssn from customers x where id > 3 order by id for update", ""},
		{"fetch 2 from c", "|4|***\n|5|***"},
		{"update customers set name = 'changed' where current of c returning id, name", "|5|changed"},
		{"select id, ssn from customers where name = 'changed'", "|5|***"},
		{"rollback", ""},
	} {
		f, r := maskIt(t, a, srv.cat, e2eMasks, step.text)
		if r != nil {
			t.Fatalf("%s: %s", step.text, r.Message)
		}
		if got, err := answer(t.Context(), srv.app, f.Text); err != nil || !strings.Contains(got, step.want) {
			t.Errorf("%s\nas %s\nanswered %s, %v", step.text, f.Text, got, err)
		}
	}
}

// wrong are statements with an error that the server finds, behind everything
// that is rewritten: $ stands for it.
var wrong = []string{
	"select 'é', ssn from customers where $",
	"select public.customers.ssn, public.customers.id from public.customers where public.customers.id = 1 and $",
	"table customers union all select $, ssn, null, null, null, null, null, null, null from customers",
	"select a.ssn, b.ssn from customers a join customers b using (id) where $",
	"select ssn from only (customers) where $",
	"select ssn from customers tablesample system (100) repeatable (1) where $",
	"select ctid, ssn from customers where $",
	"select id, name, ssn from customers group by id having $",
	"with c as (select * from customers) select ssn, (select max(secret) from events) from c where $",
	"select ssn, id from customers where $ for update",
	"select s from kept, lateral (select $) l",
	"delete from orders where customer_id in (select id from customers) and $",
	"merge into orders o using customers c on o.customer_id = c.id when matched and $ then do nothing",
	"declare x cursor for select ssn from customers where $",
	"prepare x as select ssn from customers where $",
	"explain select ssn from customers where $",
	"copy (select ssn from customers where $) to stdout",
	"/* é */ select ssn from customers -- ü\n where $",
}

// An error in what is forwarded points where it would in the client's text.
func (srv *target) testPositions(t *testing.T) {
	a := newTestAnalyzer(t)
	position := func(text string) int {
		var pgErr *pgconn.PgError
		for _, command := range []string{"begin", text, "rollback"} {
			if _, err := answer(t.Context(), srv.owner, command); errors.As(err, &pgErr) && pgErr.Code != "42883" {
				t.Fatalf("%s: %v", text, err)
			}
		}
		if pgErr == nil {
			t.Fatalf("%s: no error", text)
		}
		return int(pgErr.Position)
	}
	for _, text := range wrong {
		text = strings.ReplaceAll(text, "$", "(false = 'ß'::text)")
		f, r := maskIt(t, a, srv.cat, e2eMasks, text)
		if r != nil {
			t.Errorf("%s: refused: %s", text, r.Message)
			continue
		}
		if f.Text == text {
			t.Errorf("%s is not rewritten", text)
		}
		if got, want := f.ClientPosition(position(f.Text)), position(text); got != want {
			t.Errorf("%s\nas %s\npoints to %d, not %d", text, f.Text, got, want)
		}
	}
}

// attacks run straight at the target, as the owner: those that show do show a
// secret, the others tell something about one.
var attacks = []struct {
	text  string
	shows bool
}{
	{"select * from customers where ssn like 'SECRET-1%'", true},
	{"select query_to_xml('select * from customers', true, false, '')", false}, // they show it where the server has libxml
	{"select table_to_xml('customers', true, false, '')", false},
	{"select schema_to_xml('public', true, false, '')", false},
	{"select database_to_xml(true, false, '')", false},
	{"select * from ts_stat('select to_tsvector(''simple'', ssn) from customers') as x(word)", false},
	{"select histogram_bounds, most_common_vals from pg_stats where tablename = 'customers'", true},
	{"select stavalues1::text from pg_statistic", true},
	{"select * from picked", false},
	{"update orders set note = 'x' where id = 1 returning (select ssn from customers where id = 1)", true},
	{"insert into orders (id, note) select 1000 + id, ssn from customers returning note", true},
	{"with w as (insert into orders (id, note) select 2000 + id, ssn from customers returning note) select * from w", true},
	{"copy (select ssn from customers) to '/tmp/ssn'", false}, // not as rows
	{"select customers from customers order by ssn", true},
	{"explain analyze select * from customers where ssn = 'SECRET-1'", true},
	{"explain select * from customers where ssn = 'SECRET-1'", true},
	{"update customers set name = 'x' where id = 3 returning *", true},
	{"update customers set ssn = 'SECRET-1' where id = 2", true}, // in DETAIL
	{"insert into customers (id, ssn) values (100, 'SECRET-1') on conflict do nothing", false},
	{"delete from orders where exists (select 1 from customers where ssn = 'SECRET-1')", false},
	{"select (select 1 from customers where ssn = 'SECRET-1')", false},
	{"select 1 / (select count(*) from customers where card like 'SECRET-CARD-1%')", false},
	{"select ssn from pg_temp.customers", true},
}

func (srv *target) testAttacks(t *testing.T) {
	a := newTestAnalyzer(t)
	if _, err := answer(t.Context(), srv.owner, "create temp table customers as select ssn from public.customers"); err != nil {
		t.Fatal(err)
	}
	list := slices.Clone(attacks)
	if srv.version == "18" { // a row to the server, a name to the grammar of 17
		more := slices.Clone(attacks[:2])
		more[0].text, more[1].text, more[1].shows = "update public.customers set name = name returning old", "delete from public.customers returning old.ssn", false
		list = append(list, more...)
	}
	for _, attack := range list {
		if f, r := maskIt(t, a, srv.cat, e2eMasks, attack.text); r == nil {
			t.Errorf("%s is forwarded as %s", attack.text, f.Text)
		}
		if _, err := answer(t.Context(), srv.owner, "begin; set local search_path = pg_catalog, public, pg_temp"); err != nil {
			t.Fatal(err)
		}
		got, err := answer(t.Context(), srv.owner, attack.text)
		if attack.shows && !strings.Contains(got+whole(err), "SECRET-") {
			t.Errorf("%s shows nothing even without Mask: %.200s %v", attack.text, got, err)
		}
		if _, err := answer(t.Context(), srv.owner, "rollback"); err != nil {
			t.Fatal(err)
		}
	}
}

// Wall 1 stands without the others: the role itself cannot read a secret.
func (srv *target) testRoleCannotReadSecrets(t *testing.T) {
	for _, text := range []string{"select ssn from customers", "select c from customers c", "select * from events_1", "copy customers to stdout", "select * from customers"} {
		var pgErr *pgconn.PgError
		if _, err := answer(t.Context(), srv.app, text); !errors.As(err, &pgErr) || pgErr.Code != "42501" {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// PostgreSQL itself judges the binding: a view of the query depends on the
// relations that the judge says it reads.
func (srv *target) testBindingAgreesWithServer(t *testing.T) {
	a := newTestAnalyzer(t)
	g := newGenerator(7)
	texts := slices.Clone(readableQueries)
	for range 150 {
		texts = append(texts, g.query(3))
	}
	agreed := 0
	for _, text := range texts {
		st := judge(t, a, srv.cat, text)
		reads, columns, err := dependencies(t, srv, text)
		if st.Refusal != nil || err != nil {
			if st.Refusal == nil && namesUnbound(err) {
				t.Errorf("bound, but not by the server: %s\n%v", text, err)
			}
			continue
		}
		direct := slices.DeleteFunc(slices.Clone(st.Action.Reads), func(r string) bool {
			behindView := strings.Contains(text, "clean") && r == "public.orders" ||
				(strings.Contains(text, "dirty") || strings.Contains(text, "kept")) && (r == "public.customers" || r == "public.dirty")
			return (behindView || strings.HasPrefix(r, "pg_catalog.")) && !slices.Contains(reads, r)
		})
		if !slices.Equal(direct, reads) {
			t.Errorf("%s\nreads %v, says the server %v", text, st.Action.Reads, reads)
		}
		for _, c := range columns {
			if !slices.Contains(st.Action.Columns, c) {
				t.Errorf("%s\ncolumns %v lack the server's %s", text, st.Action.Columns, c)
			}
		}
		agreed++
	}
	if agreed < 80 {
		t.Errorf("only %d of %d queries were compared", agreed, len(texts))
	}
}

// dependencies asks the server which relations and columns a view of text needs.
// System relations leave no trace there.
func dependencies(t *testing.T, srv *target, text string) (relations, columns []string, err error) {
	t.Helper()
	ctx := t.Context()
	tx, err := srv.owner.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	// Only the rule matters: its result columns may need names of their own.
	if _, err := tx.Exec(ctx, "create temp view v_judged as select 1 as one where exists ("+text+")"); err != nil {
		return nil, nil, err
	}
	rows, err := tx.Query(ctx, `select n.nspname || '.' || c.relname, coalesce(a.attname::text, '') from pg_depend d
		join pg_rewrite w on w.oid = d.objid and w.ev_class = 'pg_temp.v_judged'::regclass
		join pg_class c on c.oid = d.refobjid join pg_namespace n on n.oid = c.relnamespace
		left join pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid and a.attnum > 0
		where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and c.oid <> 'pg_temp.v_judged'::regclass`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var relation, column string
		if err := rows.Scan(&relation, &column); err != nil {
			t.Fatal(err)
		}
		relations = append(relations, relation)
		if column != "" {
			columns = append(columns, relation+"."+column)
		}
	}
	return unite(relations, nil), unite(columns, nil), rows.Err()
}

// namesUnbound reports whether a server's error is about a name.
func namesUnbound(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && slices.Contains([]string{"42P01", "42703", "42702", "42P09"}, pgErr.Code)
}

// Random queries over marked secrets, run as the owner of the tables: no wall
// but the rewriting stands between them and the secrets.
func (srv *target) testNoSecretInRandomQueries(t *testing.T) {
	a := newTestAnalyzer(t)
	g := newGenerator(int64(srv.cat.ServerVersion()))
	forwarded, refused, failed, leaked := 0, 0, 0, 0
	for range 500 {
		text := g.query(3)
		f, r := maskIt(t, a, srv.cat, e2eMasks, text)
		if r != nil {
			refused++
			continue
		}
		forwarded++
		got, err := srv.readOnly(t, f.Text)
		if strings.Contains(got+whole(err), "SECRET-") {
			t.Errorf("%s\nas %s\nshows a secret: %.300s", text, f.Text, got+whole(err))
		}
		if err != nil {
			failed++
		}
		if namesUnbound(err) {
			t.Errorf("%s\nas %s\nis bound, but not by the server: %v", text, f.Text, err)
		}
		straight, straightErr := srv.readOnly(t, text)
		if strings.Contains(straight, "SECRET-") {
			leaked++
		}
		if err != nil && straightErr == nil {
			t.Errorf("%s\nas %s\nworks no more: %v", text, f.Text, err)
		}
	}
	t.Logf("%d forwarded, of which %d failed at the server and %d show secrets without masks; %d refused", forwarded, failed, leaked, refused)
	if forwarded < 200 || leaked < 100 || failed > forwarded/10 {
		t.Errorf("the generator does not try: %d forwarded, %d failed, %d show secrets without masks", forwarded, failed, leaked)
	}
}

// readOnly runs text as the owner in a transaction that changes nothing.
func (srv *target) readOnly(t *testing.T, text string) (string, error) {
	t.Helper()
	if _, err := answer(t.Context(), srv.owner, "begin read only"); err != nil {
		t.Fatal(err)
	}
	got, err := answer(t.Context(), srv.owner, text)
	if _, err := answer(t.Context(), srv.owner, "rollback"); err != nil {
		t.Fatal(err)
	}
	return got, err
}
