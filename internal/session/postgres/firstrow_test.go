package postgres

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// TestFirstRowIsNotDelayed: what the target has sent reaches the client although
// the rest is long in coming, of results and of COPY.
func TestFirstRowIsNotDelayed(t *testing.T) {
	t.Parallel()
	const rows = "select repeat('x', 9000) as x, case when i > 2 then pg_sleep(60)::text end as y from generate_series(1, 3) i"
	g := withJudge(t, "18") // the server itself keeps back up to 8 KB: the end of a row goes with the next
	for name, c := range map[string]struct {
		query string
		row   func(pgproto3.BackendMessage) bool
	}{
		"a result": {rows, func(m pgproto3.BackendMessage) bool { _, ok := m.(*pgproto3.DataRow); return ok }},
		"a copy":   {"copy (" + rows + ") to stdout", func(m pgproto3.BackendMessage) bool { _, ok := m.(*pgproto3.CopyData); return ok }},
	} {
		w := g.wire(t)
		if err := w.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		w.send(&pgproto3.Query{String: c.query})
		for {
			msg, err := w.Receive()
			if err != nil {
				t.Errorf("%s: no row: %v", name, err)
				break
			}
			if e, failed := msg.(*pgproto3.ErrorResponse); failed {
				t.Fatalf("%s: %+v", name, e)
			}
			if c.row(msg) {
				break
			}
		}
		w.conn.Close()
	}
}
