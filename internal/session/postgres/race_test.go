package postgres

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/quota"
	"chaperone.dev/chaperone/internal/store"
)

// counting gives a gateway real counters for limits beyond one statement.
func counting(t *testing.T) option {
	t.Helper()
	records, err := store.OpenEmbedded(store.EmbeddedConfig{Path: filepath.Join(t.TempDir(), "store.db"), Key: store.NewKey()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { records.Close() })
	usage, err := quota.New(quota.Config{Store: records})
	if err != nil {
		t.Fatal(err)
	}
	return func(_ *gateway, _ *Config, d *Deps) { d.Usage = usage }
}

// atOnce asks the same of several sessions at the same time and returns the
// answers.
func atOnce(wires []*wire, text func(i int) string) [][]string {
	answers := make([][]string, len(wires))
	var all sync.WaitGroup
	for i, w := range wires {
		all.Go(func() { answers[i] = w.ask(text(i)) })
	}
	all.Wait()
	return answers
}

// TestSeveralSpendOneBudget: sessions of one principal that spend at the same
// time get no more than their budget together, of rows read and of rows
// changed. Control: without the budget all of them get what they ask for.
func TestSeveralSpendOneBudget(t *testing.T) {
	t.Parallel()
	const sessions = 6
	for name, hour := range map[string]access.Quota{"control": {}, "budget": {RowsRead: 30, RowsChanged: 4}} {
		g := start(t, "18", counting(t))
		g.exec(t, "DROP TABLE IF EXISTS spent; CREATE TABLE spent (id int PRIMARY KEY, by int); INSERT INTO spent SELECT i FROM generate_series(1, 100) i; GRANT SELECT, UPDATE ON spent TO app")
		g.policy.set(func(r access.Request) access.Decision {
			spent := access.Quota{RowsRead: hour.RowsRead}
			if !r.Action.SQL.ReadOnly {
				spent = access.Quota{RowsChanged: hour.RowsChanged}
			}
			return allowed(access.Obligations{Limits: access.Limits{Hour: spent}})
		})
		wires := make([]*wire, sessions)
		for i := range wires {
			wires[i] = g.wire(t)
		}
		read, refused := 0, 0
		for _, lines := range atOnce(wires, func(int) string { return "select id from spent limit 25" }) {
			for _, l := range lines {
				read += strings.Count(l, "row ")
				refused += strings.Count(l, "ERROR "+sqlstateLimit)
			}
		}
		if want := map[bool]int{true: 25 * sessions, false: 30}[name == "control"]; read != want || (refused > 0) == (name == "control") {
			t.Errorf("%s: %d rows are read, want %d; %d refused", name, read, want, refused)
		}
		atOnce(wires, func(i int) string {
			return fmt.Sprintf("update spent set by = %d where id between %d and %d", i, 10*i+1, 10*i+2)
		})
		changed, err := strconv.Atoi(g.straight(t, "select count(by)::text from spent"))
		if want := map[bool]int{true: 2 * sessions, false: 4}[name == "control"]; changed != want || err != nil {
			t.Errorf("%s: %d rows are changed, want %d: %v", name, changed, want, err)
		}
	}
}

// TestRowsChangedBesideOthers: what others change meanwhile neither counts nor
// helps: a statement that waited for their lock changes what it would, or
// nothing.
func TestRowsChangedBesideOthers(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	g.exec(t, "CREATE TABLE beside (id int PRIMARY KEY, n int); INSERT INTO beside SELECT i, 0 FROM generate_series(1, 50) i; GRANT SELECT, UPDATE ON beside TO app")
	g.policy.set(limit(access.Limits{RowsChanged: 2}))
	w, other := g.wire(t), g.straightWire(t)
	waits := func(text string, meanwhile string, want []string) {
		t.Helper()
		same(t, other.ask("begin; update beside set n = n + 1 where id = 1"), []string{"BEGIN", "UPDATE 1", "ready T"})
		w.send(&pgproto3.Query{String: text})
		eventually(t, "it waits", func() bool {
			return g.straight(t, "select count(*)::text from pg_stat_activity where wait_event_type = 'Lock' and query like 'update beside%'") == "1"
		})
		other.ask(meanwhile + "; commit")
		same(t, w.until(1), want)
	}
	waits("update beside set n = 100 where id in (1, 2, 3)", "update beside set n = n + 1 where id between 10 and 40", ok("ERROR 53400"))
	waits("update beside set n = 100 where id in (1, 2)", "update beside set n = n + 1 where id between 10 and 40", ok("UPDATE 2"))
	// the other one takes a row out of the condition: fewer are changed
	waits("update beside set n = 200 where id in (1, 2, 3) and n = 100", "update beside set n = 7 where id = 1", ok("UPDATE 1"))
	if got := g.straight(t, "select string_agg(id || '=' || n, ' ' order by id) from beside where n > 50"); got != "2=200" {
		t.Errorf("changed: %s", got)
	}
}
