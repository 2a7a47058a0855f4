package postgres

import (
	"context"
	"net"
	"runtime"
	gometrics "runtime/metrics"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/record"
)

// BenchmarkSelect is one small prepared SELECT, through the gateway and straight
// at the target.
func BenchmarkSelect(b *testing.B) {
	g := start(b, "18", func(g *gateway, _ *Config, d *Deps) { d.Recorder = discard{} })
	ctx := context.Background()
	run := func(b *testing.B, conn *pgx.Conn) {
		var name string
		for b.Loop() {
			if err := conn.QueryRow(ctx, "select name from customers where id = $1", 7).Scan(&name); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("gateway", func(b *testing.B) { run(b, g.connect(b, pgx.QueryExecModeCacheStatement)) })
	b.Run("straight", func(b *testing.B) {
		conn, err := pgx.Connect(ctx, g.pg.DSN("app", rolePassword, "orders"))
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close(ctx)
		run(b, conn)
	})
}

// BenchmarkConnect opens a session and ends it.
func BenchmarkConnect(b *testing.B) {
	g := start(b, "18", func(g *gateway, _ *Config, d *Deps) { d.Recorder = discard{} })
	for b.Loop() {
		conn, err := pgconn.Connect(context.Background(), g.dsn(goodToken))
		if err != nil {
			b.Fatal(err)
		}
		conn.Close(context.Background())
	}
}

// BenchmarkSelectRecorded has 16 clients at once, with the real recorder.
func BenchmarkSelectRecorded(b *testing.B) {
	recorder, err := record.Open(record.Config{Dir: b.TempDir(), Replica: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	g := start(b, "18", func(_ *gateway, _ *Config, d *Deps) { d.Recorder = recorder })
	var clients sync.WaitGroup
	conns := make([]*pgx.Conn, 16)
	for i := range conns {
		conns[i] = g.connect(b, pgx.QueryExecModeCacheStatement)
	}
	b.ResetTimer()
	for _, conn := range conns {
		clients.Go(func() {
			var name string
			for range b.N / len(conns) {
				if err := conn.QueryRow(context.Background(), "select name from customers where id = $1", 7).Scan(&name); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
}

// BenchmarkIdleSessions opens b.N sessions that wait after one statement, and
// reports what they hold: -benchtime 1000x. The clients' side is a bare socket
// each, so that little of the memory is theirs.
func BenchmarkIdleSessions(b *testing.B) {
	g := start(b, "18", onLoopback, func(_ *gateway, c *Config, d *Deps) { d.Recorder, c.MaxSessions = discard{}, 2000 })
	first := g.idle(b) // brings what all of them share
	defer first.Close()
	var idle []net.Conn
	before := heldMemory()
	for b.Loop() {
		idle = append(idle, g.idle(b))
	}
	held := heldMemory() - before
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(held)/float64(len(idle))/1024, "KiB/session")
	for _, conn := range idle {
		conn.Close()
	}
}

// idle opens a session and runs one statement in it.
func (g *gateway) idle(b *testing.B) net.Conn {
	b.Helper()
	conn, err := g.dialSocket(g.source)
	if err != nil {
		b.Fatal(err)
	}
	var sent []byte
	for _, msg := range []pgproto3.FrontendMessage{
		&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersionNumber, Parameters: map[string]string{"user": "agent", "database": "orders"}},
		&pgproto3.PasswordMessage{Password: goodToken},
		&pgproto3.Query{String: "select name from customers where id = 7"},
	} {
		if sent, err = msg.Encode(sent[:0]); err == nil {
			_, err = conn.Write(sent)
		}
		if err != nil {
			b.Fatal(err)
		}
		want := byte('Z')
		if _, asked := msg.(*pgproto3.StartupMessage); asked {
			want = 'R'
		}
		for {
			var body []byte
			typ, size, err := readHeader(conn, 1<<20)
			if err == nil {
				body, err = readBody(conn, nil, size)
			}
			if err != nil || typ == 'E' {
				b.Fatalf("message %q: %v %q", typ, err, body)
			}
			if typ == want {
				break
			}
		}
	}
	return conn
}

// heldMemory is what is in use of the heap and of stacks.
func heldMemory() uint64 {
	runtime.GC()
	runtime.GC() // the first shrinks stacks, and lets go of what pools hold
	classes := []gometrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	gometrics.Read(classes)
	return classes[0].Value.Uint64() + classes[1].Value.Uint64()
}
