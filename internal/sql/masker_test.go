package sql

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/localserver"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

var maskerStatements = flag.Int("masker", 1200, "statements of the differential test of masks, half for each server: make masker runs 40,000")

// worldsPerServer are built before the first statement; more of them than this
// only take time.
const worldsPerServer = 4

// TestMasker asks random statements of random schemas that exist twice, with
// other values in the masked columns and all else alike. What is forwarded must
// answer the same in both, so that nothing in the answer depends on a masked
// value: no row, no count, no error. Besides, no part of a secret may be in an
// answer in any encoding, a statement that uses no masked column must answer as
// if it were sent straight, and PostgreSQL must find no masked column among
// those that a view of the forwarded text depends on.
func TestMasker(t *testing.T) {
	t.Parallel()
	for i, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			seed := *differentialSeed*1000 + int64(i)
			t.Logf("PostgreSQL %s, seed %d", version, seed)
			m := startMasker(t, version, seed)
			for n, w := range m.worlds {
				m.enter(t, w)
				run := &maskerRun{masker: m, world: w, asker: newAsker(w, seed+int64(n)), secrets: m.secrets[n]}
				run.statements(t, *maskerStatements/2/worldsPerServer)
				if n == 0 {
					run.testMutants(t)
				}
			}
			t.Log(m)
			m.checkTried(t)
		})
	}
}

// A masker is one server with both databases.
type masker struct {
	analyzer *Analyzer
	worlds   []*world
	secrets  []*marks // of each world, in the first database
	one, two *pgx.Conn
	cat      *catalog.Snapshot
	counts   map[string]int
	refusals map[string]int
}

func (m *masker) String() string {
	return fmt.Sprintf("%v\nrefused for: %v", m.counts, m.refusals)
}

func startMasker(t *testing.T, version string, seed int64) *masker {
	t.Helper()
	ctx := t.Context()
	pg, err := localserver.StartPostgres(ctx, filepath.Join(t.TempDir(), "pg"), version)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pg.Close() })
	exec := func(database string, texts ...string) {
		t.Helper()
		if err := pg.Exec(ctx, database, strings.Join(texts, ";\n")); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{"ALTER SYSTEM SET autovacuum = off", "ALTER SYSTEM SET log_statement = none", "ALTER SYSTEM SET fsync = off",
		"ALTER SYSTEM SET log_min_messages = panic", "ALTER SYSTEM SET log_min_error_statement = panic", "ALTER SYSTEM SET jit = off", "SELECT pg_reload_conf()", "CREATE DATABASE one"} {
		exec("postgres", text)
	}
	m := &masker{analyzer: newTestAnalyzer(t), counts: map[string]int{}, refusals: map[string]int{}}
	for n := range worldsPerServer {
		w := newWorld(n, seed*100+int64(n), version)
		m.worlds = append(m.worlds, w)
		exec("one", w.ddl...)
	}
	exec("postgres", "CREATE DATABASE two TEMPLATE one")
	for i, database := range []string{"one", "two"} {
		for _, w := range m.worlds {
			texts, found := w.fill(int64(i + 1))
			exec(database, texts...)
			if database == "one" {
				m.secrets = append(m.secrets, newMarks(found))
			}
		}
		exec(database, "ANALYZE")
	}
	connect := func(database string) *pgx.Conn {
		conn, err := pgx.Connect(ctx, pg.DSN("postgres", pg.Password, database)+"&statement_timeout=5000")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(ctx)) })
		return conn
	}
	m.one, m.two = connect("one"), connect("two")
	return m
}

// enter makes w the world that unqualified names mean.
func (m *masker) enter(t *testing.T, w *world) {
	t.Helper()
	for _, conn := range []*pgx.Conn{m.one, m.two} {
		if _, err := answer(t.Context(), conn, "set search_path = "+w.schema); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if m.cat, err = catalog.Load(t.Context(), m.one); err != nil {
		t.Fatal(err)
	}
}

// A maskerRun is a world's part of the test.
type maskerRun struct {
	*masker
	world   *world
	asker   *asker
	secrets *marks
	texts   []string // that were asked
}

// A masking answer of the gateway to one text.
type maskedText struct {
	text    string
	st      *Statement
	forward *Forward // nil when it was refused
	refusal *Refusal
}

func (r *maskerRun) statements(t *testing.T, n int) {
	t.Helper()
	for range n {
		r.texts = append(r.texts, r.asker.statement())
	}
	for _, m := range r.maskAll(t, r.analyzer, r.cat, r.texts) {
		r.counts["asked"]++
		if m.refusal != nil {
			r.counts["refused"]++
			r.refusals[refusalName(m.refusal)]++
			if gram := r.secrets.in(m.refusal.Message + m.refusal.Hint); gram != "" {
				t.Errorf("%s\nthe refusal shows %s", m.text, gram)
			}
			continue
		}
		r.counts["forwarded"]++
		if fault := r.fault(t, m); fault != "" {
			t.Errorf("%s\nforwarded as %s\n%s", m.text, m.forward.Text, fault)
		}
	}
}

// refusalName is a refusal without names of a world.
func refusalName(r *Refusal) string {
	words := strings.Fields(r.Message)
	words = slices.DeleteFunc(words, func(w string) bool { return strings.ContainsAny(w, ".\"0123456789") })
	return string(r.Reason) + ": " + strings.Join(words, " ")
}

func (r *maskerRun) maskAll(t *testing.T, a *Analyzer, cat *catalog.Snapshot, texts []string) []maskedText {
	all := make([]maskedText, len(texts))
	var judges sync.WaitGroup
	for j := range runtime.NumCPU() {
		judges.Go(func() {
			for i := j; i < len(texts); i += runtime.NumCPU() {
				st, err := a.Analyze(t.Context(), texts[i], cat)
				if err != nil {
					t.Errorf("%s: %v", texts[i], err)
					continue
				}
				f, err := a.Mask(t.Context(), st, cat, access.Obligations{Masks: r.world.masks})
				var refusal *Refusal
				if err != nil && !errors.As(err, &refusal) {
					t.Errorf("%s: %v", texts[i], err)
					continue
				}
				all[i] = maskedText{text: texts[i], st: st, forward: f, refusal: refusal}
			}
		})
	}
	judges.Wait()
	return slices.DeleteFunc(all, func(m maskedText) bool { return m.st == nil })
}

// fault runs what is forwarded and says in what way it tells about a masked
// value, "" when it does not.
func (r *maskerRun) fault(t *testing.T, m maskedText) string {
	t.Helper()
	one := r.run(t, r.one, m, m.forward.Text)
	two := r.run(t, r.two, m, m.forward.Text)
	switch {
	case one.text != two.text:
		return fmt.Sprintf("answers %.600s\nand with other secrets %.600s", one.text, two.text)
	case one.state != two.state:
		return fmt.Sprintf("leaves %.300s\nand with other secrets %.300s", one.state, two.state)
	case one.stored != "":
		return "writes a masked column: " + one.stored
	}
	if gram := r.secrets.in(one.text); gram != "" {
		return fmt.Sprintf("shows %s in %.600s", gram, one.text)
	}
	if namesUnbound(one.err) {
		return fmt.Sprintf("is bound, but not by the server: %v", one.err)
	}
	if one.err != nil {
		r.counts["failed"]++
	}
	straight := r.run(t, r.one, m, m.text)
	if m.st.Kind == KindChange { // dead rows make tables longer, and other plans
		r.run(t, r.two, m, m.text)
	}
	if r.secrets.in(straight.text) != "" {
		r.counts["shows secrets without masks"]++
	}
	switch {
	case len(m.forward.Masked) > 0 && isDataException(one.err):
		r.counts["fails on a mask"]++ // as '***'::date does
	case one.err != nil && straight.err == nil:
		return fmt.Sprintf("works no more: %v", one.err)
	case strings.Contains(m.text, "current_query") || strings.HasPrefix(m.text, "explain"): // they show what was forwarded
	case m.st.Kind == KindChange && strings.Contains(m.text, "ctid"): // where the server put the row this time
	case len(m.forward.Masked) == 0 && one.text != straight.text:
		return fmt.Sprintf("answers %.600s\nand straight %.600s", one.text, straight.text)
	case len(m.forward.Masked) == 0:
		r.counts["same as straight"]++
	}
	return r.dependencyFault(t, m)
}

// isDataException reports whether a server's error is about a value.
func isDataException(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && strings.HasPrefix(pgErr.Code, "22")
}

// An outcome is what one database made of a statement. Lines of the answer are
// sorted, for most statements ask for no order.
type outcome struct {
	text   string // rows, or the error
	err    error
	state  string // of the columns that are not masked, after a change
	stored string // what a change wrote into masked columns
}

// run runs text in a transaction that is rolled back.
func (r *maskerRun) run(t *testing.T, conn *pgx.Conn, m maskedText, text string) (o outcome) {
	t.Helper()
	ctx := t.Context()
	if _, err := answer(ctx, conn, "begin"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := answer(ctx, conn, "rollback"); err != nil {
			t.Fatal(err)
		}
	}()
	before := map[string]bool{}
	if m.st.Kind == KindChange {
		before = r.maskedRows(t, conn)
	}
	if m.st.Kind == KindCopyOut {
		var out strings.Builder
		_, o.err = conn.PgConn().CopyTo(ctx, &out, text)
		lines := strings.Split(out.String(), "\n")
		slices.Sort(lines)
		o.text = strings.Join(lines, "\n")
	} else {
		o.text, o.err = answer(ctx, conn, text)
	}
	var pgErr *pgconn.PgError
	switch {
	case errors.As(o.err, &pgErr) && m.st.Kind == KindChange: // the session drops the rest
		o.text += pgErr.Code + " " + pgErr.Message
	case errors.As(o.err, &pgErr):
		shown := *pgErr
		if text == m.forward.Text { // the client is to be pointed into its own text
			shown.Position = int32(m.forward.ClientPosition(int(pgErr.Position)))
		}
		o.text += fmt.Sprintf("%+v", shown)
	case o.err != nil:
		t.Fatalf("%s: %v", text, o.err)
	}
	if m.st.Kind == KindChange && o.err == nil {
		o.state = r.unmasked(t, conn)
		for row := range r.maskedRows(t, conn) {
			if !before[row] && !strings.HasSuffix(row, " untold") {
				o.stored = row
			}
		}
	}
	return o
}

// maskedRows are the masked columns of every row, with its key.
func (r *maskerRun) maskedRows(t *testing.T, conn *pgx.Conn) map[string]bool {
	t.Helper()
	return r.rows(t, conn, func(c worldColumn) bool { return c.masked }, true)
}

// unmasked is everything that is not masked.
func (r *maskerRun) unmasked(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	rows := r.rows(t, conn, func(c worldColumn) bool { return !c.masked }, false)
	return strings.Join(slices.Sorted(maps.Keys(rows)), "\n")
}

func (r *maskerRun) rows(t *testing.T, conn *pgx.Conn, take func(worldColumn) bool, untold bool) map[string]bool {
	t.Helper()
	var parts []string
	for _, table := range r.world.tables {
		var names []string
		for _, c := range table.columns {
			if take(c) {
				names = append(names, c.name)
			}
		}
		if !table.leaf || len(names) == 0 {
			continue
		}
		row := "row(" + strings.Join(names, ", ") + ")"
		tail := "''"
		if untold { // what a row has that was inserted without them
			tail = "case when num_nonnulls(" + strings.Join(names, ", ") + ") = 0 then ' untold' else '' end"
		}
		name := strings.ReplaceAll(table.name, "'", "''")
		parts = append(parts, fmt.Sprintf("select '%s ' || id || %s::text || %s from only %s.%s", name, row, tail, r.world.schema, table.name))
	}
	results, err := conn.PgConn().Exec(t.Context(), strings.Join(parts, " union all ")).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, row := range results[0].Rows {
		all[string(row[0])] = true
	}
	return all
}

// dependencyFault has PostgreSQL say what a view of the forwarded text depends
// on. Whole rows leave no trace there, nor do views that the text names; both
// are what the two databases are for.
func (r *maskerRun) dependencyFault(t *testing.T, m maskedText) string {
	t.Helper()
	if m.st.Kind != KindQuery || strings.HasPrefix(m.text, "explain") {
		return ""
	}
	srv := &target{owner: r.one}
	_, columns, err := dependencies(t, srv, m.forward.Text)
	if err != nil {
		return ""
	}
	r.counts["judged by PostgreSQL"]++
	hidden := newMasking(r.cat, r.analyzer.library, r.world.masks)
	for oid, names := range hidden.columns {
		for name := range names {
			if full := r.cat.RelationByOID(oid).Qualified() + "." + name; slices.Contains(columns, full) {
				return "depends on " + full + ", says PostgreSQL"
			}
		}
	}
	return ""
}

// checkTried fails when the statements did not put the masks to the test.
func (m *masker) checkTried(t *testing.T) {
	t.Helper()
	n := m.counts["asked"]
	for name, least := range map[string]int{"forwarded": n / 3, "shows secrets without masks": n / 8, "same as straight": n / 20, "judged by PostgreSQL": n / 6} {
		if m.counts[name] < least {
			t.Errorf("of %d statements only %d: %s", n, m.counts[name], name)
		}
	}
	if m.counts["failed"] > m.counts["forwarded"]/5 {
		t.Errorf("%d of %d forwarded statements failed", m.counts["failed"], m.counts["forwarded"])
	}
}

// testMutants is the positive control: a masker that does not know one thing of
// the catalog is caught.
func (r *maskerRun) testMutants(t *testing.T) {
	t.Helper()
	for name, mutate := range map[string]func(*Analyzer, *catalog.Relation){
		"partitions and children": func(_ *Analyzer, rel *catalog.Relation) { rel.Parents = nil },
		"generated columns": func(_ *Analyzer, rel *catalog.Relation) {
			for i := range rel.Columns {
				rel.Columns[i].From = nil
			}
		},
		"views": func(_ *Analyzer, rel *catalog.Relation) {
			if rel.Definition != "" {
				rel.Definition, rel.Sources = "SELECT 1"+strings.Repeat(", 1", len(rel.Columns)-1), nil
			}
		},
		"statistics": func(a *Analyzer, _ *catalog.Relation) { a.library.catalogs["pg_stats"] = true },
	} {
		cat, err := catalog.Load(t.Context(), r.one)
		if err != nil {
			t.Fatal(err)
		}
		a := newTestAnalyzer(t)
		texts := []string{"select most_common_vals::text, histogram_bounds::text from pg_stats where schemaname = '" + r.world.schema + "'"}
		for _, v := range r.world.views {
			texts = append(texts, "select * from "+v.name)
		}
		for _, table := range r.world.tables {
			texts = append(texts, "select * from "+table.name)
		}
		for _, text := range texts {
			_, relation, ok := strings.Cut(text, "select * from ")
			if !ok {
				relation = "pg_stats"
			}
			rel := cat.Resolve(bare(relation))
			mutate(a, rel)
			if name == "partitions and children" {
				clear(cat.Children(rel.OID))
			}
		}
		caught := 0
		for _, m := range r.maskAll(t, a, cat, texts) {
			if m.refusal == nil && r.fault(t, m) != "" {
				caught++
			}
		}
		if caught == 0 {
			t.Errorf("without what is known of %s nothing would be seen; %s: %v", name, texts[0], r.maskAll(t, a, cat, texts[:1])[0].refusal)
		}
	}
}
