package postgres

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
)

// firsts sends bytes as the first of a connection from loopback, and returns
// all that is answered up to the end, or what comes within a second.
func (g *gateway) firsts(t *testing.T, sent []byte) string {
	t.Helper()
	conn, err := g.dialSocket(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write(sent); err != nil {
		t.Fatal(err)
	}
	conn.(*net.UnixConn).CloseWrite()
	all, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, io.EOF) {
		var n net.Error
		if errors.As(err, &n) && n.Timeout() {
			t.Errorf("%q: the connection hangs", sent)
		}
	}
	return string(all)
}

// TestStartupIsNotSmuggled: what is pipelined behind a request for TLS or GSS,
// or asked for twice, opens nothing. Twin: the same startup by itself asks for
// a password.
func TestStartupIsNotSmuggled(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	packet := func(code uint32, body string) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(body)+8))
		return append(binary.BigEndian.AppendUint32(b, code), body...)
	}
	startup := packet(3<<16, "user\x00agent\x00database\x00orders\x00\x00")
	password := appendFrame(nil, 'p', []byte(goodToken+"\x00"))
	query := appendFrame(nil, 'Q', []byte("select 'smuggled'\x00"))
	query = append(query, msgTerminate, 0, 0, 0, 4) // so that it is answered before the end
	session := slices.Concat(startup, password, query)
	for name, c := range map[string]struct {
		sent  []byte
		opens bool
	}{
		"itself":                    {session, true},
		"behind GSS, in the clear":  {append(packet(codeGSSENC, ""), session...), true}, // answered no, and the client may go on so
		"behind TLS":                {append(packet(codeSSL, ""), session...), false},
		"behind GSS and TLS":        {slices.Concat(packet(codeGSSENC, ""), packet(codeSSL, ""), session), false},
		"behind four requests":      {slices.Concat(packet(codeGSSENC, ""), packet(codeGSSENC, ""), packet(codeGSSENC, ""), packet(codeGSSENC, ""), session), false},
		"behind a cancel request":   {append(packet(codeCancel, "12345678"), session...), false},
		"replication":               {slices.Concat(packet(3<<16, "user\x00agent\x00database\x00orders\x00replication\x00true\x00\x00"), password, query), false},
		"a role by options":         {slices.Concat(packet(3<<16, "user\x00agent\x00database\x00orders\x00options\x00-c role=postgres\x00\x00"), password, query), false},
		"a parameter twice":         {slices.Concat(packet(3<<16, "user\x00agent\x00database\x00orders\x00database\x00postgres\x00\x00"), password, query), false},
		"a parameter without value": {slices.Concat(packet(3<<16, "user\x00agent\x00database\x00orders\x00x"), password, query), false},
		"bytes behind the end":      {slices.Concat(packet(3<<16, "user\x00agent\x00\x00database\x00orders\x00"), password, query), false},
		"a protocol option":         {slices.Concat(packet(3<<16, "user\x00agent\x00database\x00orders\x00_pq_.role\x00postgres\x00\x00"), password, query), true}, // told to be unknown
		"a query for a password":    {slices.Concat(startup, query, query), false},
		"SASL for a password":       {slices.Concat(startup, appendFrame(nil, 'p', []byte("SCRAM-SHA-256\x00\x00\x00\x00\x01n")), query), false},
		"protocol 2":                {packet(2<<16, string(startup[8:])), false},
		"a packet too short":        {[]byte{0, 0, 0, 7, 0, 3, 0, 0}, false},
		"a packet too long":         {[]byte{0x7f, 0, 0, 0, 0, 3, 0, 0}, false},
	} {
		if got := g.firsts(t, c.sent); strings.Contains(got, "smuggled") != c.opens {
			t.Errorf("%s: %q", name, got)
		}
	}
	for name, config := range map[string]*tls.Config{
		"no ALPN": {}, "another ALPN": {NextProtos: []string{"http/1.1"}}, "the right one": {NextProtos: []string{alpnPostgres}},
	} {
		conn, err := g.dialSocket(g.source)
		if err != nil {
			t.Fatal(err)
		}
		config.RootCAs, config.ServerName = g.ca, "127.0.0.1"
		secured := tls.Client(conn, config)
		secured.SetDeadline(time.Now().Add(20 * time.Second))
		secured.Write(startup)
		first := make([]byte, 1)
		_, err = io.ReadFull(secured, first)
		if opens := err == nil && first[0] == 'R'; opens != (name == "the right one") {
			t.Errorf("TLS at once with %s: %q %v", name, first, err)
		}
		conn.Close()
	}
}

// TestCancelKeysOfOthers: a part of a long key, one that is longer, that of
// another session and none cancel nothing. Control: the key itself does.
func TestCancelKeysOfOthers(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	open := func() *wire {
		conn, err := g.dialSocket(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		w := &wire{t: t, conn: conn, Frontend: pgproto3.NewFrontend(conn, conn)}
		w.send(&pgproto3.StartupMessage{ProtocolVersion: 3<<16 | 2, Parameters: map[string]string{"user": "a", "database": "orders"}})
		w.receive()
		w.send(&pgproto3.PasswordMessage{Password: goodToken})
		for {
			switch m := w.receive().(type) {
			case *pgproto3.BackendKeyData:
				w.pid, w.secret = m.ProcessID, slices.Clone(m.SecretKey)
			case *pgproto3.ReadyForQuery:
				return w
			}
		}
	}
	w, other := open(), open()
	cancel := func(pid uint32, secret []byte) {
		body := append(binary.BigEndian.AppendUint32(nil, pid), secret...)
		b := binary.BigEndian.AppendUint32(nil, uint32(len(body)+8))
		if got := g.firsts(t, append(binary.BigEndian.AppendUint32(b, codeCancel), body...)); got != "" {
			t.Errorf("a cancel request is answered %q", got)
		}
	}
	w.send(&pgproto3.Query{String: "select pg_sleep(60), 'long-key-mark'"})
	eventually(t, "it runs", func() bool { return g.running(t, "long-key-mark") == "1" })
	for _, secret := range [][]byte{nil, w.secret[:4], w.secret[:31], append(slices.Clone(w.secret), 0), other.secret, make([]byte, 32), make([]byte, 256)} {
		cancel(w.pid, secret)
	}
	cancel(other.pid, w.secret)
	if g.running(t, "long-key-mark") != "1" {
		t.Fatal("it was cancelled")
	}
	cancel(w.pid, w.secret)
	if got := w.until(1); len(got) < 2 || got[len(got)-2] != "ERROR 57014" {
		t.Errorf("control: %q", got)
	}
}

// TestCopyOfMaskedInEveryFormat: no format and no way to name the table shows
// the column, in any form. Control: straight at the database each does.
func TestCopyOfMaskedInEveryFormat(t *testing.T) {
	t.Parallel()
	g := judged(t, "18")
	w := g.wire(t)
	secret := "123-45-6007"
	for _, from := range []string{"customers", "public.customers", "customers (ssn)", "customers (id, ssn, name)", "(select * from customers)", "(table customers)",
		"(select c from customers c)", "(select to_json(c) from customers c)", "(select ssn::bytea from customers)", "(values ((select ssn from customers where id = 7)))"} {
		for _, format := range []string{"", "(format csv, header)", "(format csv, force_quote *)", "(format csv, delimiter '5', quote '-')", "(format binary)", "(format text, null '-', delimiter '|')", "with csv", "(encoding 'UTF8')"} {
			text := "copy " + from + " to stdout " + format
			plain := func(data []byte) string {
				return string(data) + string(bytes.ReplaceAll(data, []byte("--"), []byte("-")))
			}
			shows := func(text string) bool {
				return strings.Contains(text, secret) || strings.Contains(text, hex.EncodeToString([]byte(secret)))
			}
			if format == "(format csv, delimiter '5', quote '-')" || format == "(format text, null '-', delimiter '|')" {
				secret = "6007"
			}
			if control, err := g.psqlStraight(t, text); err != nil || !shows(plain([]byte(control))) {
				t.Errorf("control: %s: %.200q %v", text, control, err)
			}
			data, lines := w.copyOut(&pgproto3.Query{String: text})
			if shows(plain(data)) || lines[len(lines)-1] != "ready I" || !strings.HasPrefix(lines[0], "COPY") {
				t.Errorf("%s: %.200q %q", text, data, lines)
			}
			secret = "123-45-6007"
		}
	}
	if strings.Contains(fmt.Sprint(g.recordedRows()), "6007") {
		t.Error("the recording shows it")
	}
}

// TestKeptAcrossAReload: what was left open when a policy took the right away
// shows no more than the policy lets it now: a portal that stopped half-way, a
// cursor, one WITH HOLD, a statement prepared either way. Control: before that
// they show the value.
func TestKeptAcrossAReload(t *testing.T) {
	t.Parallel()
	g := withJudge(t, "18")
	g.setResource("orders", func(r *Resource) { r.User, r.Unwalled = "nosy", true })
	g.policy.allowAll()
	w := g.wire(t)
	const query = "select ssn from customers order by id"
	scene{
		{"begin; declare h cursor with hold for " + query + "; commit", ok("BEGIN", "DECLARE CURSOR", "COMMIT")},
		{"prepare q as " + query + " limit 1", ok("PREPARE")},
		{"fetch h", ok("columns ssn", "row 123-45-6001", "FETCH 1")},
		{"begin; declare c cursor for " + query + "; fetch c", within("BEGIN", "DECLARE CURSOR", "columns ssn", "row 123-45-6001", "FETCH 1")},
		{"savepoint s", within("SAVEPOINT")},
	}.play(t, w)
	w.send(parse("s", query), bind("p", "s"), &pgproto3.Execute{Portal: "p", MaxRows: 1}, syncMessage)
	same(t, w.until(1), within("ParseComplete", "BindComplete", "row 123-45-6001", "PortalSuspended"))

	g.policy.setMasks(access.Mask{Column: "public.customers.ssn"})
	g.policy.set(func(access.Request) access.Decision {
		d := allowed(access.Obligations{Masks: []access.Mask{{Column: "public.customers.ssn"}}})
		d.Revision = "r2"
		return d
	})
	w.send(&pgproto3.Execute{Portal: "p", MaxRows: 1}, syncMessage)
	same(t, w.until(1), failed("ERROR 40001"))
	scene{
		{"rollback to s", within("ROLLBACK")},
		{"fetch c", failed("ERROR 40001")},
		{"rollback to s", within("ROLLBACK")},
		{"move c", failed("ERROR 40001")},
		{"rollback", ok("ROLLBACK")},
		{"fetch h", ok("ERROR 40001")},
		{"fetch backward 1 in h", ok("ERROR 40001")},
		{"execute q", ok("ERROR 40001")},
	}.play(t, w)
	w.send(bind("", "s"), execute(""), syncMessage)
	if got := strings.Join(w.until(1), "\n"); strings.Contains(got, "123-45") || !strings.Contains(got, "row ***") {
		t.Errorf("a statement prepared before: %q", got)
	}
	for _, reset := range []string{"reset all", "deallocate all; close all; reset all", "discard all"} {
		w.ask(reset)
		same(t, w.ask(query+" limit 1"), ok("columns ssn", "row ***", "SELECT 1"))
	}
	g.policy.set(func(access.Request) access.Decision {
		return access.Decision{Effect: access.Deny, Reason: access.NoRule, Message: "taken away", Revision: "r3"}
	})
	same(t, w.ask("fetch h"), ok("ERROR 34000"))
	same(t, w.ask(query), ok("ERROR 42501"))
}

// TestSwapWhileHeld: what comes behind a held portal, to put another statement
// in its place, is not taken before it is decided; what was granted runs.
func TestSwapWhileHeld(t *testing.T) {
	t.Parallel()
	g := start(t, "18", onLoopback)
	g.policy.set(holdUpdates(access.ApprovalTerms{}))
	for _, granted := range []bool{true, false} {
		w := g.wire(t)
		w.send(parse("s", "update orders set status = $1 where id = 181"), syncMessage)
		same(t, w.until(1), ok("ParseComplete"))
		w.send(bind("p", "s", "held"), execute("p"))
		id := w.notice()
		w.send(&pgproto3.Close{ObjectType: 'P', Name: "p"}, &pgproto3.Close{ObjectType: 'S', Name: "s"}, parse("s", "select $1::text as swapped"),
			bind("p", "s", "swapped"), execute("p"), syncMessage, &pgproto3.Query{String: "select 2 as two"})
		if got := g.status(t, 181); got == "swapped" {
			t.Errorf("it is %q while it is held", got)
		}
		want := ok("ERROR 57014")
		if granted {
			g.approvals.answer(id, access.Granted, access.Pending)
			want = ok("BindComplete", "UPDATE 1", "CloseComplete", "CloseComplete", "ParseComplete", "BindComplete", "row swapped", "SELECT 1")
		} else {
			g.approvals.answer(id, access.Refused, access.Pending)
		}
		same(t, w.until(1), want)
		same(t, w.until(1), ok("columns two", "row 2", "SELECT 1"))
		if got, want := g.status(t, 181), "held"; got != want {
			t.Errorf("granted %v: it is %q, want %q", granted, got, want)
		}
	}
}
