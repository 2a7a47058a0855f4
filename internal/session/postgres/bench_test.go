package postgres

import (
	"context"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

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
