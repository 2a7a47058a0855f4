package e2e

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"chaperone.dev/chaperone/examples/demo"
)

// bulkRows is how many rows BenchmarkBulk reads at once.
var bulkRows = flag.Int("rows", 200_000, "rows of BenchmarkBulk")

const bulkPolicy = `
policy: bench-bulk
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "orders"'
rules:
  - name: bulk
    when: 'sql.read_only && sql.tables == ["public.bulk"]'
    effect: allow
    mask:
      - {column: public.bulk.ssn, with: redact}
      - {column: public.bulk.card, with: redact}
`

const bulkTable = `CREATE TABLE bulk (id int, name text, email text, ssn text, card text, amount numeric(10,2), made timestamptz);
INSERT INTO bulk SELECT i, 'name ' || i, 'mail-' || i || '@example.com', '123-45-' || i %% 10000, '4111111111111111', i * 1.5, now() FROM generate_series(1, %d) i;
GRANT SELECT (id, name, email, amount, made) ON bulk TO chaperone_app; ANALYZE bulk; ALTER DATABASE orders SET log_statement = 'none'`

// BenchmarkBulk reads a whole table with two masked columns, by SELECT and by
// COPY, through Envoy and the gateway and straight at the database, in turn, and
// reports the median of their ratios: how much of the straight throughput is
// left.
func BenchmarkBulk(b *testing.B) {
	policies, err := demo.Policies()
	if err != nil {
		b.Fatal(err)
	}
	policies["bench-bulk.yaml"] = bulkPolicy
	s := own(b, demo.Options{Policies: policies})
	if err := s.Database.Exec(b.Context(), "orders", fmt.Sprintf(bulkTable, *bulkRows)); err != nil {
		b.Fatal(err)
	}
	token, err := s.Dex.Token(b.Context(), demo.Ada)
	if err != nil {
		b.Fatal(err)
	}
	connect := func(port int, user, password string) *pgconn.PgConn {
		conn, err := pgconn.Connect(b.Context(), fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s dbname=orders sslmode=disable", port, user, password))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close(context.Background()) })
		return conn
	}
	straight := connect(s.Database.Port, "postgres", s.Database.Password)
	through := connect(s.PGPort, "agent", token)
	for name, read := range map[string]func(context.Context, *pgconn.PgConn) (int64, error){"select": selectAll, "copy": copyAll} {
		b.Run(name, func(b *testing.B) {
			timed := func(conn *pgconn.PgConn) time.Duration {
				began := time.Now()
				rows, err := read(b.Context(), conn)
				if err != nil || rows != int64(*bulkRows) {
					b.Fatalf("%d rows: %v", rows, err)
				}
				return time.Since(began)
			}
			timed(straight) // what is cached is so for both
			timed(through)
			const rounds = 3
			var ratios []float64
			for range b.N * rounds {
				ratios = append(ratios, timed(straight).Seconds()/timed(through).Seconds())
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "of-straight")
		})
	}
}

func selectAll(ctx context.Context, conn *pgconn.PgConn) (int64, error) {
	result := conn.ExecParams(ctx, "select * from bulk", nil, nil, nil, nil)
	for result.NextRow() {
		_ = result.Values()
	}
	tag, err := result.Close()
	return tag.RowsAffected(), err
}

func copyAll(ctx context.Context, conn *pgconn.PgConn) (int64, error) {
	tag, err := conn.CopyTo(ctx, io.Discard, "copy bulk to stdout")
	return tag.RowsAffected(), err
}
