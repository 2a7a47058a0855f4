package postgres

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// holdUpdates asks for an approval of every UPDATE.
func holdUpdates(terms access.ApprovalTerms) func(access.Request) access.Decision {
	terms.Groups, terms.Count, terms.Expires = []string{"seniors"}, 1, time.Hour
	return func(r access.Request) access.Decision {
		if r.Action.SQL.Command != "UPDATE" {
			return allowed(access.Obligations{})
		}
		return access.Decision{Effect: access.Approve, Revision: "r1", Rules: []access.RuleRef{{Policy: "test", Rule: "fix", Hash: "h2"}},
			Obligations: access.Obligations{Approval: &terms}}
	}
}

// held starts a gateway and a client whose UPDATE of order id is held, and
// returns the id of the request.
func held(t *testing.T, text string, options ...option) (*gateway, *wire, string) {
	t.Helper()
	g := start(t, "18", options...)
	g.policy.set(holdUpdates(access.ApprovalTerms{}))
	w := g.wire(t)
	w.send(&pgproto3.Query{String: text})
	return g, w, w.notice()
}

// notice reads the notice that names a held request.
func (w *wire) notice() string {
	w.t.Helper()
	n, ok := w.receive().(*pgproto3.NoticeResponse)
	if !ok || !strings.HasPrefix(n.Message, "waiting for approval req_") {
		w.t.Fatalf("got %+v", n)
	}
	id := strings.TrimPrefix(n.Message, "waiting for approval ")
	if !strings.Contains(n.Hint, "chaperone approvals approve "+id) {
		w.t.Errorf("hint %q", n.Hint)
	}
	return id
}

func (g *gateway) status(t testing.TB, order int) string {
	t.Helper()
	return g.straight(t, "select status from orders where id = $1", order)
}

// straight asks the target itself.
func (g *gateway) straight(t testing.TB, text string, args ...any) string {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), g.pg.DSN("postgres", g.pg.Password, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var answer string
	if err := conn.QueryRow(context.Background(), text, args...).Scan(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestHeldThenGranted(t *testing.T) {
	t.Parallel()
	g, w, id := held(t, "update orders set status = 'granted' where id = 101")
	if got := g.approvals.in(access.Pending); !slices.Equal(got, []string{id}) {
		t.Fatalf("pending %q, noticed %s", got, id)
	}
	if g.status(t, 101) != "open" {
		t.Fatal("it ran before the grant")
	}
	g.approvals.mu.Lock()
	ask := g.approvals.byID[id].Ask
	g.approvals.mu.Unlock()
	if s := ask.Settings; s["role"] != "app" || s["setting search_path"] != `"public"` || s["setting TimeZone"] == "" {
		t.Errorf("settings %v", s)
	}
	g.tick <- time.Now()
	if again := w.notice(); again != id {
		t.Errorf("reminded of %s", again)
	}
	g.approvals.answer(id, access.Granted, access.Pending)
	same(t, w.until(1), []string{"UPDATE 1", "ready I"})
	if g.status(t, 101) != "granted" || !slices.Equal(g.approvals.consumed, []string{id}) {
		t.Errorf("status %s, consumed %q", g.status(t, 101), g.approvals.consumed)
	}
	same(t, g.recorder.types(0), []string{"opened", "decided", "notice", "notice", "decided", "executed", "ended"})
	if e := g.recorder.all()[5].Executed; e.Approval != id {
		t.Errorf("executed with %q", e.Approval)
	}

	t.Run("running it again asks again", func(t *testing.T) {
		w.send(&pgproto3.Query{String: "update orders set status = 'granted' where id = 101"})
		other := w.notice()
		if other == id {
			t.Error("the grant served twice")
		}
		g.approvals.answer(other, access.Refused, access.Pending)
		same(t, w.until(1), []string{"ERROR 57014", "ready I"})
	})
}

func TestHeldExtended(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	g.policy.set(holdUpdates(access.ApprovalTerms{}))
	w := g.wire(t)
	mark := len(g.pg.Log())
	const own = "set status = $1 where $2 = id" // no other test's
	run := func(id string) {
		w.send(parse("", "update orders "+own), bind("", "", "extended", id), &pgproto3.Describe{ObjectType: 'P'}, execute(""), syncMessage)
	}
	run("102")
	id := w.notice()
	for line := range strings.Lines(g.pg.Log()[mark:]) {
		if strings.Contains(line, own) && !strings.Contains(line, "EXPLAIN (FORMAT JSON") { // for the card
			t.Errorf("something of it reached the target before the grant: %s", line)
		}
	}
	g.approvals.answer(id, access.Granted, access.Pending)
	same(t, w.until(1), []string{"ParseComplete", "BindComplete", "NoData", "UPDATE 1", "ready I"})
	if g.status(t, 102) != "extended" || !strings.Contains(g.pg.Log()[mark:], own) {
		t.Error("it did not run, or not as its text")
	}

	t.Run("other values ask anew", func(t *testing.T) {
		run("102")
		first := w.notice()
		g.approvals.answer(first, access.Refused, access.Pending)
		same(t, w.until(1), []string{"ERROR 57014", "ready I"})
		run("103")
		second := w.notice()
		g.approvals.mu.Lock()
		a, b := g.approvals.byID[first].Digest, g.approvals.byID[second].Digest
		g.approvals.mu.Unlock()
		if a == b {
			t.Error("two values have one digest")
		}
		g.approvals.answer(second, access.Refused, access.Pending)
		w.until(1)
	})
	t.Run("prepared before", func(t *testing.T) {
		w.send(parse("fix", "update orders set status = $1 where id = $2"), &pgproto3.Describe{ObjectType: 'S', Name: "fix"}, syncMessage)
		same(t, w.until(1), []string{"ParseComplete", "ParameterDescription", "NoData", "ready I"})
		w.send(bind("", "fix", "prepared", "104"), execute(""), syncMessage)
		g.approvals.answer(w.notice(), access.Granted, access.Pending)
		same(t, w.until(1), []string{"BindComplete", "UPDATE 1", "ready I"})
	})
	t.Run("flushed before", func(t *testing.T) {
		w.send(bind("", "fix", "flushed", "105"), &pgproto3.Flush{})
		if got := line(w.receive()); got != "BindComplete" {
			t.Fatal(got)
		}
		w.send(execute(""), syncMessage)
		g.approvals.answer(w.notice(), access.Granted, access.Pending)
		same(t, w.until(1), []string{"UPDATE 1", "ready I"})
		if g.status(t, 105) != "flushed" {
			t.Error("it did not run")
		}
	})
}

func TestHeldThenRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		state access.ApprovalState
		want  string
	}{
		{"refused", access.Refused, "approval-refused"}, {"expired", access.Expired, "approval-expired"}, {"abandoned elsewhere", access.Abandoned, "approval-expired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, w, id := held(t, "update orders set status = 'never' where id = 110")
			g.approvals.answer(id, c.state, access.Pending)
			e, ok := w.receive().(*pgproto3.ErrorResponse)
			if !ok || e.Code != sqlstateNotGranted || !strings.Contains(e.Detail, c.want) {
				t.Errorf("got %+v", e)
			}
			same(t, w.until(1), []string{"ready I"})
			if g.status(t, 110) != "open" {
				t.Error("it ran")
			}
			same(t, w.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})
		})
	}
}

// A grant is for what was shown: what changed meanwhile is not run.
func TestHeldThenChanged(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*gateway){
		"denied now": func(g *gateway) { g.policy.set(denyWord("UPDATE")) },
		"another rule": func(g *gateway) {
			decide := holdUpdates(access.ApprovalTerms{})
			g.policy.set(func(r access.Request) access.Decision {
				d := decide(r)
				d.Rules = []access.RuleRef{{Policy: "test", Rule: "fix", Hash: "changed"}}
				return d
			})
		},
		"masked now": func(g *gateway) {
			decide := holdUpdates(access.ApprovalTerms{})
			g.policy.set(func(r access.Request) access.Decision {
				d := decide(r)
				d.Obligations.Masks = []access.Mask{{Column: "public.customers.ssn"}}
				return d
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, w, id := held(t, "update orders set status = 'ssn' where id = 111")
			change(g)
			g.approvals.answer(id, access.Granted, access.Pending)
			got := w.until(1)
			if len(got) != 2 || !strings.HasPrefix(got[0], "ERROR") || g.status(t, 111) != "open" || len(g.approvals.consumed) != 0 {
				t.Errorf("got %q, status %s, consumed %q", got, g.status(t, 111), g.approvals.consumed)
			}
		})
	}
}

func TestHeldThenLeft(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*gateway, *wire){
		"socket closed": func(_ *gateway, w *wire) { w.conn.Close() },
		"terminate":     func(_ *gateway, w *wire) { w.send(&pgproto3.Terminate{}) },
		"more, then closed": func(_ *gateway, w *wire) {
			w.send(&pgproto3.Query{String: "select 1"})
			w.conn.Close()
		},
		"killed": func(g *gateway, _ *wire) { g.registry.kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, w, id := held(t, "update orders set status = 'never' where id = 112")
			leave(g, w)
			eventually(t, "abandoned", func() bool { return slices.Equal(g.approvals.in(access.Abandoned), []string{id}) })
			g.approvals.answer(id, access.Granted, access.Pending) // too late
			eventually(t, "closed", func() bool { return len(g.registry.causes()) == 1 })
			if g.status(t, 112) != "open" {
				t.Error("it ran for nobody")
			}
		})
	}
}

func TestHeldThenCancelled(t *testing.T) {
	t.Parallel()
	g, w, id := held(t, "update orders set status = 'never' where id = 113")
	g.cancel(t, w.pid, binary.BigEndian.Uint32(w.secret))
	same(t, w.until(1), []string{"ERROR 57014", "ready I"})
	if got := g.approvals.in(access.Abandoned); !slices.Equal(got, []string{id}) {
		t.Errorf("abandoned %q", got)
	}
	same(t, w.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})
}

func TestHeldTooLong(t *testing.T) {
	t.Parallel()
	text := "update orders set status = 'late' where id = 114"
	g, w, id := held(t, text, func(_ *gateway, c *Config, _ *Deps) { c.ApprovalWait = 200 * time.Millisecond })
	e, ok := w.receive().(*pgproto3.ErrorResponse)
	if !ok || !containsAll(e.Detail, "approval-required", "requestable yes") || !strings.Contains(e.Hint, id) {
		t.Fatalf("got %+v", e)
	}
	w.until(1)
	g.approvals.answer(id, access.Granted, access.Pending)
	same(t, w.ask(text), []string{"UPDATE 1", "ready I"})
	if !slices.Equal(g.approvals.consumed, []string{id}) {
		t.Errorf("consumed %q", g.approvals.consumed)
	}

	t.Run("left open, then closed", func(t *testing.T) {
		w.send(&pgproto3.Query{String: text})
		other := w.notice()
		w.until(1)
		w.conn.Close()
		eventually(t, "abandoned", func() bool { return slices.Contains(g.approvals.in(access.Abandoned), other) })
	})
}

func TestHeldInTransaction(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	g.policy.set(holdUpdates(access.ApprovalTerms{}))
	w := g.wire(t)
	w.ask("begin")
	w.send(&pgproto3.Query{String: "update orders set status = 'never' where id = 115"})
	e, ok := w.receive().(*pgproto3.ErrorResponse)
	if !ok || !strings.Contains(e.Message, "open transaction") || !strings.Contains(e.Detail, "approval-required") {
		t.Errorf("got %+v", e)
	}
	same(t, w.until(1), []string{"ready E"})
	same(t, w.ask("rollback"), []string{"ROLLBACK", "ready I"})
	w.send(parse("", "select 1"), bind("", ""), execute(""), parse("", "update orders set status = 'never'"), bind("", ""), execute(""), syncMessage)
	same(t, w.until(1), []string{"ParseComplete", "BindComplete", "row 1", "SELECT 1", "ERROR 57014", "ready I"})
	if n := len(g.approvals.byID); n != 0 {
		t.Errorf("%d asked", n)
	}
	decided := func(ev access.Event) bool {
		return ev.Decided != nil && ev.Decided.Decision.Effect == access.Approve && strings.HasSuffix(ev.Decided.Request.Action.SQL.Text, "id = 115")
	}
	if n := g.recorder.count(decided); n != 1 {
		t.Errorf("the decision is recorded %d times", n)
	}

	t.Run("allowed by the rule", func(t *testing.T) {
		g.policy.set(holdUpdates(access.ApprovalTerms{InTransaction: true}))
		w.ask("begin")
		w.send(&pgproto3.Query{String: "update orders set status = 'inside' where id = 115"})
		g.approvals.answer(w.notice(), access.Granted, access.Pending)
		same(t, w.until(1), []string{"UPDATE 1", "ready T"})
		same(t, w.ask("commit"), []string{"COMMIT", "ready I"})
		if g.status(t, 115) != "inside" {
			t.Error("it did not run")
		}
	})
}

// A client that floods behind a held statement would hide that it leaves.
func TestHeldAndFlooded(t *testing.T) {
	t.Parallel()
	g := start(t, "18", func(_ *gateway, c *Config, _ *Deps) { c.MaxMessage = 16 << 10 })
	g.policy.set(holdUpdates(access.ApprovalTerms{}))
	w := g.wire(t)
	w.send(parse("", "update orders set status = 'never' where id = 116"), bind("", ""), execute(""))
	id := w.notice()
	go func() {
		for range 10 {
			b, _ := parse("", "select '"+strings.Repeat("x", 15<<10)+"'").Encode(nil)
			if _, err := w.conn.Write(b); err != nil {
				return
			}
		}
		b, _ := syncMessage.Encode(nil)
		w.conn.Write(b)
	}()
	for {
		msg := w.receive()
		if e, ok := msg.(*pgproto3.ErrorResponse); ok {
			if e.Code != sqlstateLimit {
				t.Errorf("got %+v", e)
			}
			break
		}
	}
	same(t, w.until(1), []string{"ready I"})
	if got := g.approvals.in(access.Abandoned); !slices.Equal(got, []string{id}) {
		t.Errorf("abandoned %q", got)
	}
}

// cancel sends a cancel request and waits until the gateway has handled it.
func (g *gateway) cancel(t testing.TB, pid, secret uint32) {
	t.Helper()
	conn, err := g.dialSocket(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 16}, codeCancel)
	b = binary.BigEndian.AppendUint32(b, pid)
	conn.Write(binary.BigEndian.AppendUint32(b, secret))
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || isTimeout(err) {
		t.Fatalf("cancel answered %d, %v", n, err)
	}
}
