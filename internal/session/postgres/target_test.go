package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"chaperone.dev/chaperone/internal/access"
)

// secured puts TLS in front of a server that has none, as PostgreSQL does it.
// It counts the connections that got through the handshake.
func secured(t *testing.T, addr string, cert tls.Certificate) (string, *atomic.Int32) {
	t.Helper()
	return securedBy(t, addr, &tls.Config{Certificates: []tls.Certificate{cert}})
}

func securedBy(t *testing.T, addr string, config *tls.Config) (string, *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var through atomic.Int32
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				request := make([]byte, 8)
				if _, err := io.ReadFull(conn, request); err != nil || binary.BigEndian.Uint32(request[4:]) != codeSSL {
					return
				}
				conn.Write([]byte{'S'})
				client := tls.Server(conn, config)
				if client.Handshake() != nil {
					return
				}
				through.Add(1)
				back, err := net.Dial("tcp", addr)
				if err != nil {
					return
				}
				defer back.Close()
				go func() {
					io.Copy(back, client)
					back.Close()
				}()
				io.Copy(client, back)
			}()
		}
	}()
	return l.Addr().String(), &through
}

// The target must prove itself before it gets the credential.
func TestTargetTLS(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	cert, pool, _ := certificate(t)
	_, stranger, _ := certificate(t)
	addr, through := secured(t, g.pg.Addr, cert)
	for name, c := range map[string]struct {
		pool *x509.CertPool
		name string
		ok   bool
	}{
		"verified":     {pool, "", true},
		"another CA":   {stranger, "", false},
		"another name": {pool, "db.internal", false},
	} {
		g.setResource("orders", func(r *Resource) { r.Address, r.TLS = addr, &tls.Config{RootCAs: c.pool, ServerName: c.name} })
		before := through.Load()
		conn, err := pgconn.Connect(context.Background(), g.dsn(goodToken))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if !c.ok {
			if through.Load() != before {
				t.Errorf("%s: the handshake went through", name)
			}
			continue
		}
		// Cancel requests go the same way.
		go func() {
			eventually(t, "it runs", func() bool { return g.running(t, "tls-mark") == "1" })
			conn.CancelRequest(context.Background())
		}()
		_, err = conn.Exec(context.Background(), "select pg_sleep(60), 'tls-mark'").ReadAll()
		if e := pgError(t, err); e.Code != "57014" {
			t.Errorf("got %+v", e)
		}
		conn.Close(context.Background())
	}
}

// A target that asks for the password itself, or for nothing, gets neither the
// password nor the session.
func TestTargetAuthentication(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	for name, request := range map[string]pgproto3.BackendMessage{
		"cleartext": &pgproto3.AuthenticationCleartextPassword{},
		"md5":       &pgproto3.AuthenticationMD5Password{Salt: [4]byte{1, 2, 3, 4}},
		"nothing":   &pgproto3.AuthenticationOk{},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			received := make(chan string, 1)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				b := pgproto3.NewBackend(conn, conn)
				if _, err := b.ReceiveStartupMessage(); err != nil {
					return
				}
				b.Send(request)
				b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
				b.Flush()
				rest, _ := io.ReadAll(conn)
				received <- string(rest)
			}()
			g.setResource("orders", func(r *Resource) { r.Address = l.Addr().String() })
			if _, err := pgconn.Connect(context.Background(), g.dsn(goodToken)); err == nil {
				t.Error("a session opened")
			}
			if got := <-received; strings.Contains(got, rolePassword) || strings.Contains(got, "md5") {
				t.Errorf("the target got %q", got)
			}
		})
	}
}

// Nothing of the environment takes part in dialling the target.
func TestTargetConfigIsItsOwn(t *testing.T) {
	server(t, "18")
	t.Setenv("PGOPTIONS", "-c search_path=evil")
	t.Setenv("PGAPPNAME", "evil")
	t.Setenv("PGSSLMODE", "disable")
	t.Setenv("PGTARGETSESSIONATTRS", "read-only")
	g := start(t, "18")
	conn := g.wire(t)
	same(t, conn.ask("select current_setting('search_path') as path, current_setting('application_name') as name"),
		[]string{"columns path,name", `row "public",`, "SELECT 1", "ready I"})
}

func TestTracesAndMetrics(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	registry := prometheus.NewRegistry()
	g := start(t, "18", func(_ *gateway, _ *Config, d *Deps) {
		d.Tracer, d.Metric = provider.Tracer("test"), registry
	})
	g.policy.set(holdUpdates(access.ApprovalTerms{}))
	w := g.wire(t)
	w.ask("select id from customers where id < 3")
	w.send(&pgproto3.Query{String: "update orders set status = 'traced' where id = 140"})
	id := w.notice()
	g.approvals.mu.Lock()
	waiting := g.approvals.byID[id].Ask.Trace
	g.approvals.mu.Unlock()
	g.approvals.answer(id, access.Granted, access.Pending)
	w.until(1)
	w.conn.Close()
	eventually(t, "all spans ended", func() bool { return len(spans.Ended()) == 3 })
	opened := g.recorder.all()[0].Opened.Session
	names := map[string]int{}
	for _, span := range spans.Ended() {
		names[span.Name()]++
		if span.SpanContext().TraceID().String() != opened.Trace {
			t.Errorf("%s is in another trace", span.Name())
		}
		for _, a := range span.Attributes() {
			if strings.Contains(a.Value.String(), "update orders") {
				t.Errorf("%s shows text: %v", span.Name(), a)
			}
		}
		if span.Name() == "postgres statement" {
			found := map[string]string{}
			for _, a := range span.Attributes() {
				found[string(a.Key)] = a.Value.String()
			}
			if found["chaperone.session"] != opened.ID || found["chaperone.rule"] == "" || found["chaperone.effect"] == "" || found["chaperone.subject"] != "agent-7" {
				t.Errorf("attributes %v", found)
			}
			if found["chaperone.effect"] == "approve" && (found["chaperone.approval"] != id || !strings.Contains(waiting, span.SpanContext().SpanID().String())) {
				t.Errorf("approval %v, trace %q", found, waiting)
			}
		}
	}
	if names["postgres session"] != 1 || names["postgres statement"] != 2 {
		t.Errorf("spans %v", names)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range families {
		seen[f.GetName()] = true
	}
	if !seen["chaperone_postgres_sessions"] || !seen["chaperone_postgres_statements_total"] {
		t.Errorf("metrics %v", seen)
	}
}
