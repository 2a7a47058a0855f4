package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/examples/demo"
)

const (
	benchRounds  = 3   // each route is measured once a round, in turn, so that what disturbs the machine meets all of them
	benchClients = 16  // at once, on each route of HTTP
	pgClients    = 8   // the same of PostgreSQL
	benchBurst   = 100 // transactions of each client that are one b.N: starting pgbench takes as long as hundreds
)

// These policies join the demo's: the same service under a second name, with
// nothing to mask, and pgbench's tables.
const plainPolicy = `
policy: bench-plain
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "plain"'
rules:
  - name: look-up
    when: 'http.method == "GET" && http.path.startsWith("/customers/")'
    effect: allow
`

const pgbenchPolicy = `
policy: bench-orders
principal: '"orders-agents" in principal.groups'
resource: 'resource.name == "orders"'
rules:
  - name: pgbench
    when: 'sql.read_only && sql.tables.all(t, t in ["public.pgbench_accounts", "public.pgbench_branches"])'
    effect: allow
    mask:
      - {column: public.pgbench_accounts.filler, with: redact}
      - {detect: [CREDIT_CARD, API_KEY], with: partial}
`

const benchResource = `  - name: plain
    kind: http
    address: %s
    http: {credential: {header: x-api-key, value: {file: secrets/billing}}}
policies:`

// A bench is everything that the benchmark runs on.
type bench struct {
	site       *demo.Site
	alone      *alone
	authorizer int // process
	token      string
	http       *httpLoad
	disk       fsyncTimes
	table      *table
}

// BenchmarkGateway measures what the gateway costs beside an Envoy alone, on
// the same machine, to the same targets, in the same run. It leaves a CSV file
// and prints the same as a table.
func BenchmarkGateway(b *testing.B) {
	s := newBench(b)
	for range benchRounds {
		s.table.round++
		b.Run("http/"+baseline, func(b *testing.B) {
			s.requests(b, s.alone.pids(), s.alone.url+"/customers/", true)
		})
		b.Run("http/decide", func(b *testing.B) {
			s.requests(b, pids{envoy: s.alone.pids().envoy, serve: s.authorizer}, s.alone.deciding+"/customers/", true)
		})
		b.Run("http/decide+record", func(b *testing.B) {
			s.requests(b, s.pids(b), s.site.URL()+"/http/plain/customers/", true)
		})
		b.Run("http/decide+mask+record", func(b *testing.B) {
			s.requests(b, s.pids(b), s.site.URL()+"/http/billing/customers/", false)
		})
		b.Run("postgres/"+baseline, func(b *testing.B) {
			s.transactions(b, s.alone.pids(), pgRoute{port: s.alone.postgres, user: "chaperone_app", password: s.site.DBPassword})
		})
		b.Run("postgres/straight", func(b *testing.B) {
			s.transactions(b, pids{}, pgRoute{port: s.site.Database.Port, user: "chaperone_app", password: s.site.DBPassword})
		})
		b.Run("postgres/"+pooled, func(b *testing.B) {
			p := s.alone.pids()
			p.serve = s.alone.pooler.PID()
			s.transactions(b, p, pgRoute{port: s.alone.pooled, user: "chaperone_app", password: s.site.DBPassword})
		})
		b.Run("postgres/decide+mask+record", func(b *testing.B) {
			s.transactions(b, s.pids(b), pgRoute{port: s.site.PGPort, user: "agent", password: s.token})
		})
	}
	path, err := s.table.save(benchOut(b))
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("\n%s\n%s%s\nCSV: %s\n\n", s.table.text(), s.table.besidePooler(), s.disk, path)
}

// benchOut is the file named by BENCH_OUT, or one that outlives the run in the
// folder for temporary files.
func benchOut(b *testing.B) string {
	if path := os.Getenv("BENCH_OUT"); path != "" {
		return path
	}
	dir, err := os.MkdirTemp("", "chaperone-bench")
	if err != nil {
		b.Fatal(err)
	}
	return filepath.Join(dir, "bench.csv")
}

func newBench(b *testing.B) *bench {
	b.Helper()
	policies, err := demo.Policies()
	if err != nil {
		b.Fatal(err)
	}
	policies["bench-plain.yaml"], policies["bench-orders.yaml"] = plainPolicy, pgbenchPolicy
	s := &bench{table: &table{}}
	var billing string
	s.site, err = start(b.Context(), demo.Options{Policies: policies, Config: func(text string) string {
		_, rest, _ := strings.Cut(text, "- name: billing")
		_, rest, _ = strings.Cut(rest, "address: ")
		billing, _, _ = strings.Cut(rest, "\n")
		return strings.Replace(text, "policies:", fmt.Sprintf(benchResource, billing), 1)
	}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		s.site.Close()
		if b.Failed() {
			b.Logf("the end of the gateway's log:\n%s", tail(s.site.Gateway.Log(), 40))
		}
		os.RemoveAll(s.site.Dir)
	})
	if s.token, err = s.site.Dex.Token(b.Context(), demo.Ada); err != nil {
		b.Fatal(err)
	}
	if s.http, err = newHTTPLoad(s.site, s.token); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.http.close)
	s.pgbenchTables(b)
	s.parsersWarm(b)
	s.authorizer = startAuthorizer(b, s.site)
	s.alone = startAlone(b, s.site)
	if s.disk, err = measureFsync(filepath.Join(s.site.Dir, "data", "recordings")); err != nil {
		b.Fatal(err)
	}
	return s
}

// parsersWarm waits until the last parser worker, a spare, has compiled the
// grammar: several seconds of CPU that no request costs.
func (s *bench) parsersWarm(b *testing.B) {
	b.Helper()
	const warm = "chaperone_sql_parser_workers 3"
	if err := demo.Eventually(b.Context(), 2*time.Minute, func() error {
		got, err := scrape(b.Context(), s.site)
		if err == nil && !strings.Contains(got, "\n"+warm+"\n") {
			err = fmt.Errorf("the metrics lack %q", warm)
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
}

// pids are the gateway's processes: Envoy, and chaperone serve, whose children
// are its parser workers.
func (s *bench) pids(b *testing.B) pids {
	b.Helper()
	var p pids
	var err error
	if p.envoy, err = s.site.Gateway.PID("envoy"); err != nil {
		b.Fatal(err)
	}
	if p.serve, err = s.site.Gateway.PID("serve"); err != nil {
		b.Fatal(err)
	}
	return p
}

// requests measures b.N HTTP requests. plain says whether the card number is to
// be seen in the answers: a route that answers otherwise measures nothing.
func (s *bench) requests(b *testing.B, p pids, url string, plain bool) {
	if err := s.http.check(b.Context(), url+"1", plain); err != nil {
		b.Fatal(err)
	}
	s.measure(b, p, "http", "req", func(ctx context.Context, n int) (time.Duration, int, error) {
		began := time.Now()
		err := s.http.run(ctx, url, benchClients, n)
		return time.Since(began), n, err
	}, nil)
}

// transactions measures b.N bursts of pgbench. Connecting and
// preparing are not of the transaction: what they cost is measured by a run of
// one transaction for each client, and taken off.
func (s *bench) transactions(b *testing.B, p pids, route pgRoute) {
	pgbench := filepath.Join(s.site.Database.Bin, "pgbench")
	run := func(ctx context.Context, n int) (time.Duration, int, error) {
		return route.run(ctx, pgbench, pgClients, 1+n*benchBurst)
	}
	s.measure(b, p, "postgres", "tx", run, func(ctx context.Context) (int, error) {
		_, n, err := route.run(ctx, pgbench, pgClients, 1)
		return n, err
	})
}

// measure runs load for b.N and keeps what it cost for each one (req, tx); base,
// if any, is what is to be taken off. The last b.N of a round counts.
func (s *bench) measure(b *testing.B, p pids, protocol, one string, load func(context.Context, int) (time.Duration, int, error), base func(context.Context) (int, error)) {
	b.Helper()
	r := row{round: s.table.round, clients: clientsOf(protocol), protocol: protocol, route: strings.Split(strings.TrimPrefix(b.Name(), "BenchmarkGateway/"+protocol+"/"), "#")[0], disk: s.disk}
	var off cpu
	less := 0
	if base != nil {
		b.StopTimer()
		before := p.read(b)
		n, err := base(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		off, less = p.read(b).minus(before), n
		b.StartTimer()
	}
	stored, synced := s.recorded(b), s.synced(b)
	before := p.read(b)
	took, n, err := load(b.Context(), b.N)
	if err != nil {
		b.Fatal(err)
	}
	r.used = p.read(b).minus(before).minus(off)
	r.n, r.ran, r.took = n-less, n, took
	r.stored, r.synced = s.recorded(b)-stored, s.synced(b).minus(synced)
	r = s.table.put(r)
	b.ReportMetric(0, "ns/op") // of many clients at once it says nothing
	b.ReportMetric(r.perOne(r.used.total()), "cpu-µs/"+one)
	b.ReportMetric(r.rate(), one+"/s")
	if r.rateRatio > 0 && r.cpuRatio > 0 && r.route != baseline {
		b.ReportMetric(r.cpuRatio, "cpu-ratio")
		b.ReportMetric(r.rateRatio, "rate-ratio")
	}
	if r.stored > 0 {
		b.ReportMetric(float64(r.stored)/float64(r.ran), "recorded-B/"+one)
	}
}

func clientsOf(protocol string) int {
	if protocol == "postgres" {
		return pgClients
	}
	return benchClients
}

var fsyncMetric = regexp.MustCompile(`(?m)^chaperone_record_fsync_seconds_(sum|count) (\S+)$`)

// synced is how often, and for how long, the recorder has waited for the disk.
func (s *bench) synced(b *testing.B) (f fsyncs) {
	b.Helper()
	text, err := scrape(b.Context(), s.site)
	if err != nil {
		b.Fatal(err)
	}
	for _, m := range fsyncMetric.FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			b.Fatal(err)
		}
		if m[1] == "sum" {
			f.took = time.Duration(v * float64(time.Second))
		} else {
			f.count = v
		}
	}
	return f
}

// recorded is the size of the recording.
func (s *bench) recorded(b *testing.B) (size int64) {
	b.Helper()
	found, err := filepath.Glob(filepath.Join(s.site.Dir, "data", "recordings", "*"))
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range found {
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		size += info.Size()
	}
	return size
}
