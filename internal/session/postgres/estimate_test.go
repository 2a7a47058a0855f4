package postgres

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
)

// estimating is a gateway with the real judge, whose policy reads estimates.
// The estimates that decisions saw are asked for by text.
func estimating(t *testing.T, version string, options ...option) *gateway {
	t.Helper()
	analyzer := realAnalyzer(t)
	g := start(t, version, append([]option{onLoopback, func(g *gateway, _ *Config, _ *Deps) {
		g.setResource("orders", func(r *Resource) { r.Analyzer = analyzer })
		g.policy.estimates = true
	}}, options...)...)
	return g
}

// estimated is how many estimates came out so.
func (g *gateway) estimated(t testing.TB, outcome string) (n float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(g.metrics.estimates)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == outcome {
				n = m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// seen returns the last request that policy was asked about with this text.
func (p *policy) seen(t testing.TB, text string) *access.SQL {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.asked) - 1; i >= 0; i-- {
		if p.asked[i].Action.SQL.Text == text {
			return p.asked[i].Action.SQL
		}
	}
	t.Fatalf("policy was not asked about %s", text)
	return nil
}

func (g *gateway) exec(t testing.TB, text string) {
	t.Helper()
	if err := g.pg.Exec(t.Context(), "orders", text); err != nil {
		t.Fatal(err)
	}
}

// What policy is asked about carries what the planner expects, of reads and of
// changes, and nothing runs for it.
func TestEstimates(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"16", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			g := estimating(t, version)
			g.exec(t, `CREATE TABLE IF NOT EXISTS measured (id int PRIMARY KEY, note text); GRANT SELECT, UPDATE, DELETE ON measured TO app;
				INSERT INTO measured SELECT i, 'x' FROM generate_series(1, 5000) i; ANALYZE measured`)
			conn := g.connectPlain(t, pgx.QueryExecModeSimpleProtocol)
			for _, c := range []struct {
				text     string
				from, to int64
			}{
				{"select id, note from measured", 5000, 5000},
				{"select id from measured where id = 7 -- the key", 1, 1},
				{"select count(*) from measured", 1, 1},
				{"select id from measured limit 12;", 12, 12},
				{"update measured set note = 'y'", 5000, 5000},
				{"delete from measured where id = 7", 1, 1},
				{"with d as (delete from measured returning id) select count(*) from d", 5000, 5000},
			} {
				g.policy.set(func(access.Request) access.Decision {
					return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: "measured only", Revision: "r1"}
				})
				if _, err := conn.Exec(t.Context(), c.text); err == nil || !strings.Contains(err.Error(), "measured only") {
					t.Errorf("%s: %v", c.text, err)
				}
				got := g.policy.seen(t, c.text)
				if got.EstimatedRows == nil || *got.EstimatedRows < c.from || *got.EstimatedRows > c.to || *got.EstimatedBytes < *got.EstimatedRows {
					t.Errorf("%s: rows %v, bytes %v", c.text, show(got.EstimatedRows), show(got.EstimatedBytes))
				}
			}
			if n := g.straight(t, "select count(*)::text from measured where note = 'x'"); n != "5000" {
				t.Errorf("%s rows are as they were", n)
			}
			g.policy.allowAll()
			for _, text := range []string{"explain select 1", "begin", "commit", "show timezone", "prepare p as select 1", "execute p", "copy measured to stdout", "create table t2 (a int)"} {
				conn.Exec(t.Context(), text)
				if got := g.policy.seen(t, max(text, map[string]string{"execute p": "prepare p as select 1"}[text])); got.EstimatedRows != nil {
					t.Errorf("%s: rows %s", text, show(got.EstimatedRows))
				}
			}
		})
	}
}

func show(n *int64) any {
	if n == nil {
		return "unknown"
	}
	return *n
}

// Statements with parameters get the generic plan, cursors that of their query.
func TestEstimatesExtended(t *testing.T) {
	t.Parallel()
	g := estimating(t, "18")
	w := g.wire(t)
	const text = "select id from orders where id = $1"
	w.send(parse("", text), bind("", "", "7"), execute(""), syncMessage)
	w.until(1)
	if got := g.policy.seen(t, text); show(got.EstimatedRows) != int64(1) || len(got.Parameters) != 1 {
		t.Errorf("rows %v of %+v\n%s", show(got.EstimatedRows), got, g.log)
	}
	w.ask("begin")
	const declare = "declare c cursor for select id from orders limit 9"
	w.ask(declare)
	w.ask("fetch 1 from c")
	if got := g.policy.seen(t, declare); show(got.EstimatedRows) != int64(9) {
		t.Errorf("cursor: rows %v", show(got.EstimatedRows))
	}
}

// A policy whose rules do not read it costs the target nothing, and the same
// statement is planned once.
func TestEstimatesOnDemand(t *testing.T) {
	t.Parallel()
	g := estimating(t, "18")
	conn := g.connectPlain(t, pgx.QueryExecModeSimpleProtocol)
	planned := func() float64 { return g.estimated(t, "planned") }
	ask := func(text string) {
		if _, err := conn.Exec(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	ask("select 11")
	if planned() != 1 {
		t.Errorf("planned %v times", planned())
	}
	ask("select 11")
	if kept := g.estimated(t, "kept"); planned() != 1 || kept != 1 {
		t.Errorf("planned %v times, kept %v", planned(), kept)
	}
	g.policy.mu.Lock()
	g.policy.estimates = false
	g.policy.mu.Unlock()
	ask("select 12")
	if planned() != 1 || g.policy.seen(t, "select 12").EstimatedRows != nil {
		t.Errorf("planned %v times", planned())
	}
}

// Planning computes IMMUTABLE functions: one that nobody vouches for must not
// be. The control shows that plain EXPLAIN runs it, in a read-only transaction
// too.
func TestEstimateRunsNoFunction(t *testing.T) {
	t.Parallel()
	g := estimating(t, "18")
	g.exec(t, `CREATE OR REPLACE FUNCTION innocent() RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RAISE LOG 'planned-% ran', 'innocent'; RETURN 1; END $$;
		CREATE OR REPLACE VIEW innocents AS SELECT id FROM orders WHERE id = innocent(); GRANT SELECT ON innocents TO app`)
	ran := func() int { return strings.Count(g.pg.Log(), "planned-innocent ran") }
	conn := g.connectPlain(t, pgx.QueryExecModeSimpleProtocol)
	g.policy.set(func(access.Request) access.Decision {
		return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: "no", Revision: "r1"}
	})
	for _, text := range []string{
		"select innocent()", "select id from orders where id = innocent()", "update orders set id = innocent() where false", "select id from innocents",
	} {
		conn.Exec(t.Context(), text)
		if got := g.policy.seen(t, text); got.EstimatedRows != nil || len(got.Unknown) == 0 {
			t.Errorf("%s: rows %v, unknown %q", text, show(got.EstimatedRows), got.Unknown)
		}
	}
	if n := ran(); n != 0 {
		t.Errorf("it ran %d times", n)
	}
	conn.Exec(t.Context(), "select length('abc')")
	if got := g.policy.seen(t, "select length('abc')"); show(got.EstimatedRows) != int64(1) {
		t.Errorf("twin: rows %v", show(got.EstimatedRows))
	}
	if err := g.pg.Exec(t.Context(), "orders", "BEGIN READ ONLY; EXPLAIN SELECT innocent(); ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "control: it ran", func() bool { return ran() > 0 })
}

// The estimate is that of the text that is forwarded: the true column is not
// there, and its statistics tell nothing, though the role may read it.
func TestEstimateOfMasked(t *testing.T) {
	t.Parallel()
	g := estimating(t, "18")
	g.setResource("orders", func(r *Resource) { r.User, r.Unwalled = "nosy", true })
	ssn := access.Mask{Column: "public.customers.ssn"}
	g.policy.setMasks(ssn)
	g.policy.set(func(access.Request) access.Decision { return allowed(access.Obligations{Masks: []access.Mask{ssn}}) })
	conn := g.connectPlain(t, pgx.QueryExecModeSimpleProtocol)
	const shown = "select id, ssn from customers"
	if _, err := conn.Exec(t.Context(), shown); err != nil {
		t.Fatal(err)
	}
	if got := g.policy.seen(t, shown); got.EstimatedRows == nil {
		t.Error("no estimate of a rewritten read")
	}
	const oracle = "select id from customers where ssn = '123-45-6007'"
	if _, err := conn.Exec(t.Context(), oracle); err == nil {
		t.Error("a predicate on a masked column was answered")
	}
	if got := g.policy.seen(t, oracle); got.EstimatedRows != nil {
		t.Errorf("rows %d of a masked predicate", *got.EstimatedRows)
	}

	t.Run("masks that the estimate changes", func(t *testing.T) {
		calls := 0
		g.policy.set(func(access.Request) access.Decision {
			if calls++; calls%2 == 1 {
				return allowed(access.Obligations{})
			}
			return allowed(access.Obligations{Masks: []access.Mask{ssn}})
		})
		const text = "select id, ssn from customers where id = 3"
		if _, err := conn.Exec(t.Context(), text); err != nil {
			t.Fatal(err)
		}
		if got := g.policy.seen(t, text); got.EstimatedRows != nil {
			t.Error("it was decided by the estimate of another text")
		}
	})
}

// A plan that takes too long is given up, and the statement is judged without.
func TestEstimateTimeout(t *testing.T) {
	t.Parallel()
	g := estimating(t, "18")
	g.exec(t, "CREATE TABLE IF NOT EXISTS locked (id int); GRANT SELECT ON locked TO app")
	locker, err := pgx.Connect(t.Context(), g.pg.DSN("postgres", g.pg.Password, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	defer locker.Close(context.Background())
	if _, err := locker.Exec(t.Context(), "BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	g.policy.set(func(access.Request) access.Decision {
		return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: "no", Revision: "r1"}
	})
	conn := g.connectPlain(t, pgx.QueryExecModeSimpleProtocol)
	began := time.Now()
	conn.Exec(t.Context(), "select id from locked")
	if took := time.Since(began); took < estimateTimeout-100*time.Millisecond || took > 3*estimateTimeout {
		t.Errorf("it took %s", took)
	}
	if got := g.policy.seen(t, "select id from locked"); got.EstimatedRows != nil || g.estimated(t, "timeout") != 1 {
		t.Errorf("rows %v", show(got.EstimatedRows))
	}
	conn.Exec(t.Context(), "select id from orders limit 3")
	if got := g.policy.seen(t, "select id from orders limit 3"); show(got.EstimatedRows) != int64(3) {
		t.Errorf("the next one: rows %v", show(got.EstimatedRows))
	}
}

// The card of a held statement has the estimate though no rule reads it, and
// the grant survives another one.
func TestHeldEstimate(t *testing.T) {
	t.Parallel()
	g := estimating(t, "18")
	g.policy.estimates = false
	g.exec(t, "CREATE TABLE IF NOT EXISTS growing (id int PRIMARY KEY, note text); GRANT SELECT, UPDATE ON growing TO app; INSERT INTO growing VALUES (1, 'a'); ANALYZE growing")
	g.policy.set(holdUpdates(access.ApprovalTerms{}))
	w := g.wire(t)
	w.send(&pgproto3.Query{String: "update growing set note = 'granted'"})
	id := w.notice()
	g.approvals.mu.Lock()
	asked := g.approvals.byID[id].Ask.Request.Action.SQL
	g.approvals.mu.Unlock()
	if show(asked.EstimatedRows) != int64(1) || show(asked.EstimatedBytes) == "unknown" {
		t.Errorf("rows %v, bytes %v", show(asked.EstimatedRows), show(asked.EstimatedBytes))
	}
	g.policy.mu.Lock()
	g.policy.estimates = true
	g.policy.mu.Unlock()
	g.exec(t, "INSERT INTO growing SELECT i, 'b' FROM generate_series(2, 900) i; ANALYZE growing; CREATE TABLE another_catalog ()")
	g.approvals.answer(id, access.Granted, access.Pending)
	same(t, w.until(1), []string{"UPDATE 900", "ready I"})
	if got := g.policy.seen(t, "update growing set note = 'granted'"); show(got.EstimatedRows) != int64(900) {
		t.Errorf("the second estimate: %v", show(got.EstimatedRows))
	}
}

func TestReadPlans(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]*estimate{
		`[{"Plan": {"Node Type": "Result", "Plan Rows": 2, "Plan Width": 4}}]`:                                                                     {rows: 2, bytes: 8},
		`[{"Plan": {"Node Type": "Result", "Plan Rows": 2, "Plan Width": 4}}, {"Plan": {"Node Type": "Result", "Plan Rows": 3, "Plan Width": 4}}]`: {rows: 5, bytes: 20},
		`[{"Plan": {"Node Type": "ModifyTable", "Plan Rows": 0, "Plan Width": 0, "Plans": [
			{"Parent Relationship": "InitPlan", "Plan Rows": 900, "Plan Width": 4}, {"Parent Relationship": "Outer", "Plan Rows": 7, "Plan Width": 10}]}}]`: {rows: 7, bytes: 70},
		`[{"Plan": {"Plan Rows": 1` + strings.Repeat("0", 90) + `, "Plan Width": 4}}]`: {rows: math.MaxInt64, bytes: math.MaxInt64},
		`[]`: nil, `["Utility Statement"]`: nil, `[{}]`: nil, `[{"Plan": {"Plan Rows": 1`: nil,
	} {
		got, err := readPlans([]byte(text))
		if (want == nil) != (err != nil) || want != nil && (got.rows != want.rows || got.bytes != want.bytes || len(got.plan) != 16) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

// Whatever the text is, the target takes one statement of it.
func TestEstimateIsOfOneStatement(t *testing.T) {
	t.Parallel()
	g := estimating(t, "18")
	r, _ := g.resource("orders")
	e := newEstimator(logins{})
	defer e.close()
	if err := e.connect(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for text, generic := range map[string]bool{
		"select 1; commit; delete from notes": false, "select $1::int; commit; delete from notes": true, "begin": false, "analyze orders": false,
	} {
		if found, err := e.plan(t.Context(), text, generic); err == nil {
			t.Errorf("%s: %+v", text, found)
		}
	}
	if found, err := e.plan(t.Context(), "select $1::int", true); err != nil || found.rows != 1 || found.bytes != 4 {
		t.Errorf("twin: %+v %v", found, err)
	}
	if _, err := e.conn.Exec(t.Context(), "create table never (a int)"); err == nil {
		t.Error("the connection may write")
	}
}

// TestPlanIsRecorded: the decision holds a digest of the plan's shape: the same
// for other constants, another where the plan is another.
func TestPlanIsRecorded(t *testing.T) {
	t.Parallel()
	g := estimating(t, "18")
	w := g.wire(t)
	plan := func(text string) string {
		w.ask(text)
		recorded := ""
		for _, e := range g.recorder.all() {
			if e.Decided != nil && e.Decided.Request.Action.SQL.Text == text {
				recorded = e.Decided.Request.Action.SQL.Plan
			}
		}
		return recorded
	}
	byKey, other, all := plan("select status from orders where id = 7"), plan("select status from orders where id = 8"), plan("select status from orders")
	if len(byKey) != 16 || byKey != other || byKey == all || len(all) != 16 {
		t.Errorf("by key %q and %q, all %q", byKey, other, all)
	}
}
