package postgres

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
)

func withRejected(_ *gateway, _ *Config, d *Deps) {
	d.Rejected = func(err error) bool { return errors.Is(err, errRejected) }
}

// No token, an expired one and one for others get the same answer; the reason is
// in the log and in the recording alone.
func TestAuthenticationIsUniform(t *testing.T) {
	t.Parallel()
	g := start(t, "18", withRejected)
	answers := map[string]string{}
	for name, token := range map[string]string{"none": "", "expired": "expired-token", "wrong audience": "other-audience"} {
		w := g.startWire(t, map[string]string{"user": "agent", "database": "orders"})
		w.send(&pgproto3.PasswordMessage{Password: token})
		e, ok := w.receive().(*pgproto3.ErrorResponse)
		if !ok || e.Severity != "FATAL" || e.Code != sqlstateAuthentication {
			t.Fatalf("%s: got %+v", name, e)
		}
		id := e.Detail[strings.Index(e.Detail, "req_"):]
		answers[name] = e.Message + "|" + strings.ReplaceAll(e.Detail, id, "ID") + "|" + e.Hint
		if e.Hint == "" || !containsAll(e.Detail, "rule default-deny; reason unauthenticated; requestable no; request req_") {
			t.Errorf("%s: detail %q hint %q", name, e.Detail, e.Hint)
		}
		if n := g.recorder.count(func(ev access.Event) bool { return ev.Denied != nil && ev.Denied.Denial.RequestID == id }); n != 1 {
			t.Errorf("%s: recorded %d times", name, n)
		}
		if _, err := w.Receive(); err == nil {
			t.Errorf("%s: the connection goes on", name)
		}
	}
	if answers["none"] != answers["expired"] || answers["expired"] != answers["wrong audience"] {
		t.Errorf("answers differ: %q", answers)
	}
	if !containsAll(g.log.String(), "token rejected: other-audience") {
		t.Error("the log does not tell the reason")
	}

	t.Run("no verdict", func(t *testing.T) {
		w := g.startWire(t, map[string]string{"user": "agent", "database": "orders"})
		w.send(&pgproto3.PasswordMessage{Password: "no-keys"})
		if e, ok := w.receive().(*pgproto3.ErrorResponse); !ok || e.Code != sqlstateUnavailable {
			t.Errorf("got %+v", e)
		}
	})
}

// What is not there and what one may not know of look alike.
func TestUnknownResource(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	var answers []string
	for _, c := range []struct{ token, database string }{{goodToken, "orderz"}, {"stranger", "orders"}} {
		w := g.startWire(t, map[string]string{"user": "agent", "database": c.database})
		w.send(&pgproto3.PasswordMessage{Password: c.token})
		e, ok := w.receive().(*pgproto3.ErrorResponse)
		if !ok || e.Severity != "FATAL" || e.Code != sqlstateNoDatabase {
			t.Fatalf("got %+v", e)
		}
		detail, _, _ := strings.Cut(e.Detail, "req_")
		answers = append(answers, strings.ReplaceAll(e.Message, c.database, "X")+detail+e.Hint)
	}
	if answers[0] != answers[1] {
		t.Errorf("answers differ: %q", answers)
	}
}

func TestStartupParameters(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	for _, c := range []struct {
		name, value, fault string
	}{
		{"application_name", "report", ""},
		{"client_encoding", "UTF8", ""},
		{"client_encoding", "'utf-8'", ""},
		{"DateStyle", "ISO", ""},
		{"datestyle", "iso, mdy", ""},
		{"IntervalStyle", "postgres", ""},
		{"default_transaction_read_only", "on", ""},
		{"lock_timeout", "5000", ""},
		{"TimeZone", "Europe/Berlin", ""},
		{"extra_float_digits", "2", ""},
		{"statement_timeout", "5s", ""},
		{"options", "", ""},
		{"options", "-c statement_timeout=5s --lock-timeout=1s  -cTimeZone=UTC", ""},
		{"options", `-c application_name=a\ b`, ""},
		{"DateStyle", "ISO, DMY", "DateStyle"},
		{"statement_timeout", "0", "statement_timeout"},
		{"lock_timeout", "0ms", "lock_timeout"},
		{"idle_in_transaction_session_timeout", "0", "idle_in_transaction_session_timeout"},
		{"IntervalStyle", "sql_standard", "IntervalStyle"},
		{"extra_float_digits", "99", "extra_float_digits"},
		{"options", "-c statement_timeout=0", "statement_timeout"},
		{"options", "--statement-timeout=0", "statement_timeout"},
		{"options", `-c search\_path=evil`, "search_path"},
		{"options", "-c", "options"},
		{"options", "-c search_path", "options"},
		{"options", "-B 100", "options"},
		{"options", "-d 5", "options"},
		{"options", "search_path=evil", "options"},
		{"Role", "postgres", "role"},
		{"Options", "-c statement_timeout=5", "options"},
		{"client_encoding", "LATIN1", "client_encoding"},
		{"DateStyle", "German", "DateStyle"},
		{"search_path", "evil", "search_path"},
		{"options", "-c search_path=evil", "search_path"},
		{"replication", "database", "replication"},
		{"session_replication_role", "replica", "session_replication_role"},
		{"standard_conforming_strings", "off", "standard_conforming_strings"},
		{"role", "postgres", "role"},
		{"TimeZone", "'; select", "TimeZone"},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			conn, err := g.dialSocket(&net.TCPAddr{IP: net.IPv6loopback, Port: 999})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			f := pgproto3.NewFrontend(conn, conn)
			f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "a", "database": "orders", c.name: c.value}})
			f.Flush()
			msg, err := f.Receive()
			if err != nil {
				t.Fatal(err)
			}
			e, refused := msg.(*pgproto3.ErrorResponse)
			if refused != (c.fault != "") {
				t.Fatalf("got %T %+v", msg, e)
			}
			if refused && (e.Code != sqlstateUnsupported || !strings.Contains(e.Message, c.fault)) {
				t.Errorf("got %s %q", e.Code, e.Message)
			}
		})
	}
	t.Run("they take effect", func(t *testing.T) {
		config, _ := pgx.ParseConfig(g.dsn(goodToken))
		config.RuntimeParams = map[string]string{"TimeZone": "Asia/Tokyo", "application_name": "report"}
		config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		conn, err := pgx.ConnectConfig(context.Background(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		var zone, path, conforming string
		err = conn.QueryRow(context.Background(), "select current_setting('TimeZone'), current_setting('search_path'), current_setting('standard_conforming_strings')").Scan(&zone, &path, &conforming)
		if err != nil || zone != "Asia/Tokyo" || path != `"public"` || conforming != "on" {
			t.Errorf("zone %q, path %q, strings %q, %v", zone, path, conforming, err)
		}
		if got := conn.PgConn().ParameterStatus("TimeZone"); got != "Asia/Tokyo" {
			t.Errorf("reported %q", got)
		}
	})
}

func TestProxyHeaderIsRequired(t *testing.T) {
	t.Parallel()
	g := start(t, "18", func(_ *gateway, c *Config, _ *Deps) { c.StartupTimeout = 2 * time.Second })
	startup, _ := (&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "a"}}).Encode(nil)
	v1 := proxyproto.HeaderProxyFromAddrs(1, g.source, g.source)
	version1, _ := v1.Format()
	local := &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	health, _ := local.Format()
	for name, first := range map[string][]byte{
		"none": startup, "version 1": append(version1, startup...), "local": append(health, startup...), "nothing at all": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("unix", g.socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			conn.Write(first)
			answer, err := io.ReadAll(conn)
			if len(answer) > 0 || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %q, %v", answer, err)
			}
		})
	}
	t.Run("twin", func(t *testing.T) { g.wire(t) })
}

func TestTLS(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	t.Run("plaintext from afar", func(t *testing.T) {
		conn, err := g.dialSocket(g.source)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		f := pgproto3.NewFrontend(conn, conn)
		f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "a", "database": "orders"}})
		f.Flush()
		msg, err := f.Receive()
		e, ok := msg.(*pgproto3.ErrorResponse)
		if !ok || e.Code != sqlstateAuthorization || !strings.Contains(e.Hint, "sslmode=verify-full") {
			t.Errorf("got %+v, %v", msg, err)
		}
	})
	t.Run("plaintext smuggled before the handshake", func(t *testing.T) {
		conn, err := g.dialSocket(g.source)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		startup, _ := (&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "a", "database": "orders"}}).Encode(nil)
		request := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, codeSSL)
		conn.Write(append(request, startup...))
		one := make([]byte, 1)
		if _, err := io.ReadFull(conn, one); err != nil || one[0] != 'S' {
			t.Fatalf("got %q, %v", one, err)
		}
		err = tls.Client(conn, &tls.Config{RootCAs: g.ca, ServerName: "127.0.0.1"}).Handshake()
		if err == nil {
			t.Error("the handshake went on over smuggled bytes")
		}
	})
	t.Run("no certificate", func(t *testing.T) {
		g := start(t, "18", func(_ *gateway, _ *Config, d *Deps) { d.TLS = nil })
		_, err := pgconn.Connect(context.Background(), g.dsn(goodToken))
		if err == nil || !strings.Contains(err.Error(), "server refused TLS") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("direct", func(t *testing.T) {
		conn, err := pgconn.Connect(context.Background(), g.dsn(goodToken)+" sslnegotiation=direct")
		if err != nil {
			t.Fatal(err)
		}
		conn.Close(context.Background())
	})
}

func TestProtocolVersions(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := func() *pgproto3.Frontend {
		conn, err := g.dialSocket(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		return pgproto3.NewFrontend(conn, conn)
	}
	for _, c := range []struct {
		asked, spoken, secret int
		option                string
	}{
		{0, -1, shortSecret, ""}, {1, -1, shortSecret, ""}, {2, -1, longSecret, ""}, {9999, 2, longSecret, ""},
		{2, 2, longSecret, "_pq_.command"}, {0, 0, shortSecret, "_pq_.command"},
	} {
		f := w()
		params := map[string]string{"user": "a", "database": "orders"}
		if c.option != "" {
			params[c.option] = "1"
		}
		f.Send(&pgproto3.StartupMessage{ProtocolVersion: uint32(3<<16 | c.asked), Parameters: params})
		f.Flush()
		msg, err := f.Receive()
		if c.spoken >= 0 {
			n, ok := msg.(*pgproto3.NegotiateProtocolVersion)
			if !ok || n.NewestMinorProtocol != uint32(3<<16|c.spoken) || (len(n.UnrecognizedOptions) == 1) != (c.option != "") {
				t.Errorf("3.%d: got %+v, %v", c.asked, msg, err)
			}
			msg, err = f.Receive()
		}
		if _, ok := msg.(*pgproto3.AuthenticationCleartextPassword); !ok {
			t.Fatalf("3.%d: got %+v, %v", c.asked, msg, err)
		}
		f.Send(&pgproto3.PasswordMessage{Password: goodToken})
		f.Flush()
		for secret := -1; secret < 0; {
			msg, err := f.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if key, ok := msg.(*pgproto3.BackendKeyData); ok {
				if secret = len(key.SecretKey); secret != c.secret {
					t.Errorf("3.%d: a secret of %d bytes", c.asked, secret)
				}
			}
		}
	}
	other := w()
	other.Send(&pgproto3.StartupMessage{ProtocolVersion: 2 << 16, Parameters: map[string]string{"user": "a"}})
	other.Flush()
	if e, err := other.Receive(); err != nil || line(e) != "FATAL 08P01" {
		t.Errorf("got %+v, %v", e, err)
	}
	for _, max := range []string{"3.0", "3.2", "latest"} {
		conn, err := pgconn.Connect(context.Background(), g.dsn(goodToken)+" max_protocol_version="+max)
		if err != nil {
			t.Fatalf("%s: %v", max, err)
		}
		cancelled := make(chan error, 1)
		go func() {
			eventually(t, "it runs", func() bool { return g.running(t, "version-mark") == "1" })
			cancelled <- conn.CancelRequest(context.Background())
		}()
		_, err = conn.Exec(context.Background(), "select pg_sleep(60), 'version-mark'").ReadAll()
		if e := pgError(t, err); e.Code != "57014" || <-cancelled != nil {
			t.Errorf("%s: %+v", max, e)
		}
		conn.Close(context.Background())
	}
}

// Clients that do not authenticate are bounded in number and in time.
func TestUnauthenticatedAreBounded(t *testing.T) {
	t.Parallel()
	g := start(t, "18", func(_ *gateway, c *Config, _ *Deps) {
		c.MaxUnauthenticated, c.StartupTimeout = 3, time.Second
	})
	var idle []net.Conn
	for range 3 {
		conn, err := g.dialSocket(g.source)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	eventually(t, "one too many is told", func() bool {
		conn, err := g.dialSocket(g.source)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return turnedAway(t, conn)
	})
	for _, conn := range idle {
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("an idle connection stays: %v", err)
		}
	}
	g.wire(t)
}

// turnedAway sends a startup message and reports whether the answer is that
// there is no place, told in full.
func turnedAway(t *testing.T, conn net.Conn) bool {
	t.Helper()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	startup := &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "agent", "database": "orders"}}
	w := &wire{t: t, conn: conn, Frontend: pgproto3.NewFrontend(conn, conn)}
	w.send(startup)
	e, ok := w.receive().(*pgproto3.ErrorResponse)
	if !ok || e.Code != sqlstateTooMany {
		return false
	}
	if e.Severity != "FATAL" || !containsAll(e.Detail, "reason limit-exceeded", "request req_") || e.Hint == "" {
		t.Errorf("it is told %+v", e)
	}
	if _, err := w.Receive(); err == nil {
		t.Error("the connection goes on")
	}
	return true
}

// Attack: one address takes all its places. Twins: another address, and the same
// one when a place is free again; the authenticated need none.
func TestUnauthenticatedAreBoundedBySource(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	g := start(t, "18", func(_ *gateway, c *Config, d *Deps) { c.MaxWaitingPerSource, d.Metric = 2, registry })
	for range 3 {
		g.wire(t) // authenticated sessions stay open and count no more
	}
	dial := func(ip string) net.Conn {
		conn, err := g.dialSocket(&net.TCPAddr{IP: net.ParseIP(ip), Port: 999})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	for _, c := range []struct{ crowd, same, other string }{
		{"10.9.9.9", "10.9.9.9", "10.9.9.10"},
		{"2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1"},
	} {
		counted := func(n int) func() bool {
			return func() bool {
				return g.gate.Waiting(&net.TCPAddr{IP: net.ParseIP(c.crowd)}) == n
			}
		}
		first, second := dial(c.crowd), dial(c.crowd)
		eventually(t, "both are counted", counted(2))
		if !turnedAway(t, dial(c.same)) {
			t.Errorf("%s: one too many was let in", c.crowd)
		}
		if turnedAway(t, second) || turnedAway(t, dial(c.other)) {
			t.Errorf("%s: another connection was turned away", c.crowd)
		}
		first.Close()
		eventually(t, "a place is free again", counted(0)) // the second is refused by now: it had no TLS
		if turnedAway(t, dial(c.same)) {
			t.Errorf("%s: the free place is not given", c.crowd)
		}
	}
	for range 2 {
		dial(g.source.IP.String())
	}
	eventually(t, "both are counted", func() bool { return g.gate.Waiting(g.source) == 2 })
	if _, err := pgconn.Connect(t.Context(), g.dsn(goodToken)); err == nil || pgError(t, err).Code != sqlstateTooMany {
		t.Errorf("with TLS: %v", err)
	}
	families, err := registry.Gather()
	if err != nil || !strings.Contains(fmt.Sprint(families), "crowded-source") {
		t.Errorf("no metric tells: %v %v", families, err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestSessionsAreBounded(t *testing.T) {
	t.Parallel()
	g := start(t, "18", func(_ *gateway, c *Config, _ *Deps) { c.MaxSessions = 1 })
	first := g.wire(t)
	w := g.startWire(t, map[string]string{"user": "agent", "database": "orders"})
	w.send(&pgproto3.PasswordMessage{Password: goodToken})
	if got := line(w.receive()); got != "FATAL 53300" {
		t.Errorf("got %s", got)
	}
	first.send(&pgproto3.Terminate{})
	eventually(t, "the place is free", func() bool { return len(g.registry.causes()) == 1 })
	eventually(t, "a new session", func() bool {
		w := g.startWire(t, map[string]string{"user": "agent", "database": "orders"})
		defer w.conn.Close()
		w.send(&pgproto3.PasswordMessage{Password: goodToken})
		return line(w.receive()) == "AuthenticationOk"
	})
}

// The injected role must lack what is masked.
func TestWall(t *testing.T) {
	t.Parallel()
	ssn := access.Mask{Column: "public.customers.ssn", With: access.Redact}
	name := access.Mask{Column: "public.customers.name", With: access.Redact}
	for _, c := range []struct {
		name     string
		user     string
		masks    []access.Mask
		unwalled bool
		cause    string
	}{
		{"walled", "app", []access.Mask{ssn}, false, ""},
		{"nothing masked", "nosy", nil, false, ""},
		{"readable", "nosy", []access.Mask{ssn}, false, "the role may SELECT public.customers.ssn"},
		{"one of two readable", "app", []access.Mask{ssn, name}, false, "the role may SELECT public.customers.name"},
		{"partial needs it", "nosy", []access.Mask{{Column: "public.customers.ssn", With: access.Partial}}, false, ""},
		{"said to be unwalled", "nosy", []access.Mask{ssn}, true, ""},
		{"superuser", "postgres", nil, false, "the role has SUPERUSER"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := start(t, "18", func(g *gateway, _ *Config, _ *Deps) {
				g.policy.setMasks(c.masks...)
				g.setResource("orders", func(r *Resource) {
					r.User, r.Unwalled = c.user, c.unwalled
					if c.user == "postgres" {
						r.Password = func(context.Context) (access.Secret, error) { return access.NewSecret(g.pg.Password), nil }
					}
				})
			})
			_, err := pgconn.Connect(context.Background(), g.dsn(goodToken))
			if c.cause == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			e := pgError(t, err)
			if e.Severity != "FATAL" || e.Code != sqlstateUnavailable || !strings.Contains(e.Hint, "doctor --grants") {
				t.Errorf("got %+v", e)
			}
			if n := g.recorder.count(func(ev access.Event) bool { return ev.Denied != nil && strings.Contains(ev.Denied.Cause, c.cause) }); n != 1 {
				t.Errorf("the cause is recorded %d times", n)
			}
		})
	}
}

// The client never gets what the gateway logs in with, and the token is of no
// use at the target.
func TestCredentialIsInjected(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	conn, err := g.dialSocket(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	var seen strings.Builder
	f := pgproto3.NewFrontend(io.TeeReader(conn, &seen), conn)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "a", "database": "orders"}})
	f.Send(&pgproto3.PasswordMessage{Password: goodToken})
	f.Send(&pgproto3.Query{String: "select current_user"})
	f.Send(&pgproto3.Terminate{})
	f.Flush()
	for {
		if _, err := f.Receive(); err != nil {
			break
		}
	}
	if !strings.Contains(seen.String(), "app") {
		t.Error("control: the role is not the injected one")
	}
	if strings.Contains(seen.String(), rolePassword) || strings.Contains(g.log.String(), rolePassword) || strings.Contains(fmt.Sprint(g.recorder.all()), rolePassword) {
		t.Error("the credential shows")
	}
	if strings.Contains(g.log.String(), goodToken) || strings.Contains(fmt.Sprint(g.recorder.all()), goodToken) {
		t.Error("the token shows")
	}
	if _, err := pgconn.Connect(context.Background(), g.pg.DSN("app", goodToken, "orders")); err == nil {
		t.Error("the token opens the target")
	}
}

func TestTargetUnreachable(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	for name, change := range map[string]func(*Resource){
		"refused": func(r *Resource) { r.Address = "127.0.0.1:1" },
		"wrong password": func(r *Resource) {
			r.Password = func(context.Context) (access.Secret, error) { return access.NewSecret("x"), nil }
		},
		"no credential":  func(r *Resource) { r.Password = nil },
		"tls is refused": func(r *Resource) { r.TLS = &tls.Config{ServerName: "db"} },
	} {
		good, _ := g.resource("orders")
		broken := good
		change(&broken)
		g.setResource("orders", func(r *Resource) { *r = broken })
		_, err := pgconn.Connect(context.Background(), g.dsn(goodToken))
		if e := pgError(t, err); e.Severity != "FATAL" || e.Code != sqlstateLost || strings.Contains(e.Message+e.Detail+e.Hint, "127.0.0.1") {
			t.Errorf("%s: got %+v", name, e)
		}
		g.setResource("orders", func(r *Resource) { *r = good })
	}
	eventually(t, "every session is closed", func() bool {
		return g.recorder.count(func(e access.Event) bool { return e.Closed != nil }) == 4
	})
}

// psql itself. The one of the wheel has no TLS: it goes as a client on loopback.
func TestPsql(t *testing.T) {
	t.Parallel()
	g := start(t, "18", onLoopback)
	g.policy.set(denyWord("DELETE"))
	run := func(args ...string) string {
		cmd := exec.Command(filepath.Join(g.pg.Bin, "psql"), append([]string{"-X", g.plainDSN(goodToken)}, args...)...)
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if out := run("-At", "-c", "select id, name from customers where id < 3 order by id"); out != "1|name-1\n2|name-2\n" {
		t.Errorf("got %q", out)
	}
	out := run("-c", "delete from orders", "-c", "select 'still here'")
	if !containsAll(out, "ERROR:  DELETE is not allowed", "DETAIL:  rule default-deny; reason no-rule", "HINT:  ask for it", "still here") {
		t.Errorf("got %q", out)
	}
	script := filepath.Join(t.TempDir(), "x.sql")
	writeFile(t, script, "select id, amount from orders where id = 2 \\gdesc\nselect $1::int + 1 as two \\bind 1 \\g\nselect name from customers where id = $1 \\parse p1\n\\bind_named p1 4 \\g\n")
	if out := run("-f", script); !containsAll(out, "amount | numeric(10,2)", "two", "name-4") {
		t.Errorf("got %q", out)
	}
	if out := run("-c", "\\conninfo"); !strings.Contains(out, "orders") {
		t.Errorf("got %q", out)
	}
}
