package sql

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// statementsCounted is how many messages of tricky statements each server
// counts.
const statementsCounted = 4000

// testCounts has the server run messages of several harmless statements, whose
// ends are hard to see, by the simple protocol, and compares how many it
// completed with how many the judge says there are.
func (r *differentialRun) testCounts(t *testing.T) {
	w := newWriter(&vocabulary{}, *differentialSeed)
	texts := make([]string, statementsCounted)
	for i := range texts {
		texts[i] = w.several()
	}
	counted, unread := map[int]int{}, 0
	var parts []string
	for i, st := range r.judgeAll(t, texts) {
		server, err := r.completed(t, texts[i])
		var pgErr *pgconn.PgError
		switch {
		case st.Refusal != nil && st.Action.Statements == 0: // a comment within a string that goes on after it: refused
			unread++
		case err == nil:
			counted[server]++
			if len(st.Parts) != server && server > 1 {
				t.Errorf("%q is cut into %d", texts[i], len(st.Parts))
			}
			for _, part := range st.Parts {
				parts = append(parts, part.Text)
			}
			if st.Action.Statements != server {
				t.Errorf("%q: %d statements for the judge, %d for the server", texts[i], st.Action.Statements, server)
			}
		case !errors.As(err, &pgErr):
			t.Fatal(err)
		case server > 0 && st.Action.Statements <= server: // it read all of them before it ran the first
			t.Errorf("%q: %d statements for the judge, %d for the server before %v", texts[i], st.Action.Statements, server, err)
		}
	}
	for _, st := range r.judgeAll(t, parts) { // which a session runs one by one
		if n, err := r.completed(t, st.Text); st.Action.Statements != 1 || n != 1 || err != nil {
			t.Errorf("%q was cut out: %d statements for the judge, %d for the server, %v", st.Text, st.Action.Statements, n, err)
		}
	}
	t.Logf("messages by how many statements they have: %v; %d that the judge does not read", counted, unread)
	if unread > statementsCounted/5 {
		t.Errorf("the judge does not read %d of %d messages", unread, statementsCounted)
	}
	for n := range 5 {
		if counted[n] < 20 {
			t.Errorf("only %d messages have %d statements", counted[n], n)
		}
	}
}

// completed is how many statements of text the server completed before err.
func (r *differentialRun) completed(t *testing.T, text string) (n int, failed error) {
	t.Helper()
	f := r.subject.Frontend()
	f.SendQuery(&pgproto3.Query{String: strings.ReplaceAll(text, "\x00", "")})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		message, err := r.subject.ReceiveMessage(t.Context())
		var pgErr *pgconn.PgError
		if err != nil && !errors.As(err, &pgErr) {
			t.Fatal(err)
		}
		switch m := message.(type) {
		case *pgproto3.CommandComplete:
			n++
		case *pgproto3.ErrorResponse:
			failed = pgconn.ErrorResponseToPgError(m)
		case *pgproto3.ReadyForQuery:
			return n, failed
		}
	}
}
