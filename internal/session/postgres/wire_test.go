package postgres

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A wire is a client that speaks messages.
type wire struct {
	t    testing.TB
	conn net.Conn
	*pgproto3.Frontend
	pid    uint32
	secret []byte
}

// wire opens a session in the clear, as a loopback client.
func (g *gateway) wire(t testing.TB) *wire {
	t.Helper()
	w := g.startWire(t, map[string]string{"user": "agent", "database": "orders"})
	w.Send(&pgproto3.PasswordMessage{Password: goodToken})
	w.flush()
	for {
		switch msg := w.receive().(type) {
		case *pgproto3.BackendKeyData:
			w.pid, w.secret = msg.ProcessID, slices.Clone(msg.SecretKey)
		case *pgproto3.ReadyForQuery:
			return w
		case *pgproto3.ErrorResponse:
			t.Fatalf("startup: %s %s %s", msg.Code, msg.Message, msg.Detail)
		}
	}
}

// startWire sends a startup message and reads the request for a password.
func (g *gateway) startWire(t testing.TB, params map[string]string) *wire {
	t.Helper()
	conn, err := g.dialSocket(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 999})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	w := &wire{t: t, conn: conn, Frontend: pgproto3.NewFrontend(conn, conn)}
	w.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: params})
	w.flush()
	switch msg := w.receive().(type) {
	case *pgproto3.AuthenticationCleartextPassword:
	case *pgproto3.ErrorResponse:
		t.Fatalf("startup: %s %s", msg.Code, msg.Message)
	default:
		t.Fatalf("startup: %T", msg)
	}
	return w
}

func (w *wire) flush() {
	w.t.Helper()
	if err := w.Flush(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) receive() pgproto3.BackendMessage {
	w.t.Helper()
	msg, err := w.Receive()
	if err != nil {
		w.t.Fatalf("receive: %v", err)
	}
	return msg
}

// send sends messages in one write.
func (w *wire) send(msgs ...pgproto3.FrontendMessage) {
	w.t.Helper()
	for _, m := range msgs {
		w.Send(m)
	}
	w.flush()
}

// line renders one answer for comparison.
func line(msg pgproto3.BackendMessage) string {
	switch m := msg.(type) {
	case *pgproto3.ErrorResponse:
		return m.Severity + " " + m.Code
	case *pgproto3.NoticeResponse:
		return "notice " + m.Message
	case *pgproto3.DataRow:
		cells := make([]string, len(m.Values))
		for i, v := range m.Values {
			cells[i] = string(v)
		}
		return "row " + strings.Join(cells, ",")
	case *pgproto3.CommandComplete:
		return string(m.CommandTag)
	case *pgproto3.ReadyForQuery:
		return "ready " + string(m.TxStatus)
	case *pgproto3.RowDescription:
		names := make([]string, len(m.Fields))
		for i, f := range m.Fields {
			names[i] = string(f.Name)
		}
		return "columns " + strings.Join(names, ",")
	default:
		return strings.TrimPrefix(fmt.Sprintf("%T", msg), "*pgproto3.")
	}
}

// until collects rendered answers up to n ReadyForQuery.
func (w *wire) until(n int) []string {
	w.t.Helper()
	var lines []string
	for n > 0 {
		msg := w.receive()
		if _, ok := msg.(*pgproto3.ParameterStatus); ok {
			continue
		}
		lines = append(lines, line(msg))
		if _, ok := msg.(*pgproto3.ReadyForQuery); ok {
			n--
		}
	}
	return lines
}

// ask sends a simple query and returns the rendered answer.
func (w *wire) ask(text string) []string {
	w.t.Helper()
	w.send(&pgproto3.Query{String: text})
	return w.until(1)
}

func same(t testing.TB, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("answers\n got %q\nwant %q", got, want)
	}
}

// eventually polls until ok, for what no event tells.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

// pgError asserts that err is an error of the server and returns it.
func pgError(t testing.TB, err error) *pgconn.PgError {
	t.Helper()
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		t.Fatalf("no server error: %v", err)
	}
	return pgErr
}
