package postgres

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// straightWire speaks to the target itself, with what the gateway injects.
func (g *gateway) straightWire(t *testing.T) *wire {
	t.Helper()
	config, err := pgconn.ParseConfig(g.pg.DSN("app", rolePassword, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	pg, err := pgconn.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := pg.SyncConn(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn := pg.Conn()
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return &wire{t: t, conn: conn, Frontend: pgproto3.NewFrontend(conn, conn)}
}

// randomPipeline makes messages that end with Sync or a simple query, most of
// them sensible.
func randomPipeline(r *rand.Rand) (msgs []pgproto3.FrontendMessage, text string) {
	names := []string{"", "a", "b"}
	texts := []string{
		"select 1 as one", "select id from orders order by id limit 3", "select $1::int4 + 1 as sum", "select nothing", "select 1/(id-1) from orders order by id desc limit 3",
		"insert into orders values (1, 1, 'x', 1) returning id", "begin", "commit", "rollback", "savepoint s", "rollback to s", "", "update orders set status = status where false",
		"select generate_series(1, 70) as n",
	}
	name := func() string { return names[r.IntN(len(names))] }
	var told []string
	for range 1 + r.IntN(8) {
		var m pgproto3.FrontendMessage
		switch n := r.IntN(12); {
		case n < 3:
			m = parse(name(), texts[r.IntN(len(texts))])
		case n < 6:
			b := bind(name(), name())
			if r.IntN(3) == 0 {
				b.Parameters = [][]byte{[]byte("41")}
			}
			m = b
		case n < 9:
			m = &pgproto3.Execute{Portal: name(), MaxRows: uint32(r.IntN(3))}
		case n < 10:
			m = &pgproto3.Describe{ObjectType: "SP"[r.IntN(2)], Name: name()}
		case n < 11:
			m = &pgproto3.Close{ObjectType: "SP"[r.IntN(2)], Name: name()}
		default:
			m = &pgproto3.Flush{}
		}
		msgs, told = append(msgs, m), append(told, fmt.Sprintf("%T%+v", m, m))
	}
	if r.IntN(4) == 0 {
		q := &pgproto3.Query{String: texts[r.IntN(len(texts))]}
		if !strings.Contains(q.String, "$1") {
			return append([]pgproto3.FrontendMessage{syncMessage}, q), fmt.Sprintf("sync, query %q", q.String)
		}
	}
	return append(msgs, syncMessage), strings.Join(told, " ")
}

// Whatever a client may send, in whatever order, is answered as the target
// would answer it, when everything is allowed.
func TestAnswersLikeTheTarget(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		through, straight := g.wire(t), g.straightWire(t)
		for step := range 12 {
			msgs, text := randomPipeline(r)
			ready := 1
			if _, simple := msgs[len(msgs)-1].(*pgproto3.Query); simple {
				ready = 2
			}
			through.send(msgs...)
			straight.send(msgs...)
			got, want := through.until(ready), straight.until(ready)
			if !alike(got, want) && !alike(withoutEarlyColumns(got), want) {
				t.Fatalf("seed %d, step %d: %s\n got %q\nwant %q", seed, step, text, got, want)
			}
		}
		through.conn.Close()
		straight.conn.Close()
	}
}

// alike compares answers. Where a message has two faults, the gateway's own
// check of the names may tell the other one.
func alike(got, want []string) bool {
	return slices.EqualFunc(got, want, func(a, b string) bool {
		ofNames := strings.Contains("42P05 42P03 26000 34000", strings.TrimPrefix(a, "ERROR "))
		return a == b || ofNames && strings.HasPrefix(b, "ERROR ")
	})
}

// withoutEarlyColumns drops a RowDescription right before an error: a simple
// query that fails while it runs shows its columns first, since the gateway
// describes it first.
func withoutEarlyColumns(lines []string) []string {
	var kept []string
	for i, l := range lines {
		if strings.HasPrefix(l, "columns ") && i+1 < len(lines) && strings.HasPrefix(lines[i+1], "ERROR ") {
			continue
		}
		kept = append(kept, l)
	}
	return kept
}
