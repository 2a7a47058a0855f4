package e2e

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// pids are the processes whose CPU time counts: serve is what stands behind
// Envoy, if anything does.
type pids struct{ envoy, serve int }

// cpu is user and system time that processes have used.
type cpu struct{ envoy, serve time.Duration }

func (c cpu) minus(other cpu) cpu  { return cpu{c.envoy - other.envoy, c.serve - other.serve} }
func (c cpu) total() time.Duration { return c.envoy + c.serve }

func (p pids) read(b *testing.B) (c cpu) {
	b.Helper()
	if p.envoy == 0 {
		return c
	}
	own, _, err := processTime(p.envoy)
	if err != nil {
		b.Fatal(err)
	}
	c.envoy = own
	if p.serve == 0 {
		return c
	}
	own, waited, err := processTime(p.serve)
	if err != nil {
		b.Fatal(err)
	}
	c.serve = own + waited // of children that ended
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.serve))
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range children {
		list, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(list)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				b.Fatal(err)
			}
			if own, _, err := processTime(pid); err == nil { // it may have ended just now
				c.serve += own
			}
		}
	}
	return c
}

// tick is the unit of /proc/PID/stat: Linux gives every program 100 a second.
const tick = 10 * time.Millisecond

// processTime reads utime+stime of all threads, and cutime+cstime.
func processTime(pid int) (own, waited time.Duration, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ") // after the name, which may hold anything but this
	fields := strings.Fields(rest)             // the first is the third of proc_pid_stat(5)
	if len(fields) < 15 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	var t [4]time.Duration
	for i := range t {
		n, err := strconv.ParseInt(fields[11+i], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		t[i] = time.Duration(n) * tick
	}
	return t[0] + t[1], t[2] + t[3], nil
}

// fsyncTimes are of single appends of 4 KiB, each followed by its fsync.
type fsyncTimes struct{ median, p95 time.Duration }

func (f fsyncTimes) String() string {
	return fmt.Sprintf("fsync of a 4 KiB append beside the recording: median %d µs, 95th percentile %d µs", f.median.Microseconds(), f.p95.Microseconds())
}

// measureFsync appends and syncs 200 times beside dir, on the same file system.
func measureFsync(dir string) (t fsyncTimes, err error) {
	f, err := os.CreateTemp(filepath.Dir(dir), "fsync")
	if err != nil {
		return t, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	page := make([]byte, 4096)
	took := make([]time.Duration, 200)
	for i := range took {
		began := time.Now()
		if _, err := f.Write(page); err != nil {
			return t, err
		}
		if err := f.Sync(); err != nil {
			return t, err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return fsyncTimes{median: took[len(took)/2], p95: took[len(took)*95/100]}, nil
}

// fsyncs are those of the recorder.
type fsyncs struct {
	count float64
	took  time.Duration
}

func (f fsyncs) minus(other fsyncs) fsyncs { return fsyncs{f.count - other.count, f.took - other.took} }

// A row is one route in one round.
type row struct {
	round, clients  int
	protocol, route string
	n               int // requests or transactions that used is of
	ran             int // all that ran
	took            time.Duration
	used            cpu
	stored          int64 // bytes added to the recording
	synced          fsyncs
	disk            fsyncTimes

	cpuRatio, rateRatio float64 // to the baseline of the same round; 0 if there is none
}

func (r row) perOne(d time.Duration) float64 {
	return float64(d) / float64(time.Microsecond) / float64(max(r.n, 1))
}

// each is what all that ran had, divided by them.
func (r row) each(all float64) float64 { return all / float64(max(r.ran, 1)) }

func (r row) rate() float64 { return float64(r.ran) / r.took.Seconds() }

const (
	baseline = "envoy-alone"     // the route that the others are compared with
	pooled   = "envoy+pgbouncer" // of PostgreSQL, compared with by itself
)

// A table gathers rows.
type table struct {
	round int
	rows  []row
}

// put keeps r in place of what an earlier b.N gave, with its ratios.
func (t *table) put(r row) row {
	t.rows = slices.DeleteFunc(t.rows, func(old row) bool {
		return old.round == r.round && old.protocol == r.protocol && old.route == r.route
	})
	t.rows = append(t.rows, r)
	last := &t.rows[len(t.rows)-1]
	for _, base := range t.rows {
		if base.round == r.round && base.protocol == r.protocol && base.route == baseline {
			last.rateRatio = r.rate() / base.rate()
			if used := base.perOne(base.used.total()); used > 0 {
				last.cpuRatio = r.perOne(r.used.total()) / used
			}
		}
	}
	return *last
}

// save writes every row as CSV.
func (t *table) save(path string) (string, error) {
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	w := csv.NewWriter(f)
	lines := [][]string{{"round", "protocol", "route", "clients", "count", "seconds", "envoy_cpu_us", "chaperone_cpu_us", "cpu_us", "cpu_ratio",
		"per_second", "rate_ratio", "recorded_bytes", "fsync_median_us", "fsync_p95_us", "fsyncs_each", "fsync_us_each"}}
	for _, r := range t.rows {
		lines = append(lines, []string{strconv.Itoa(r.round), r.protocol, r.route, strconv.Itoa(r.clients), strconv.Itoa(r.ran), decimal(r.took.Seconds(), 3),
			decimal(r.perOne(r.used.envoy), 1), decimal(r.perOne(r.used.serve), 1), decimal(r.perOne(r.used.total()), 1), decimal(r.cpuRatio, 2),
			decimal(r.rate(), 1), decimal(r.rateRatio, 3), decimal(float64(r.stored)/float64(r.ran), 0),
			strconv.FormatInt(r.disk.median.Microseconds(), 10), strconv.FormatInt(r.disk.p95.Microseconds(), 10),
			decimal(r.each(r.synced.count), 3), decimal(r.each(float64(r.synced.took)/float64(time.Microsecond)), 1)})
	}
	if err := w.WriteAll(lines); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return path, f.Close()
}

func decimal(f float64, digits int) string { return strconv.FormatFloat(f, 'f', digits, 64) }

// text is the median of each column over the rounds, aligned.
func (t *table) text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "protocol\troute\tCPU ratio\trate ratio\tCPU µs\tof Envoy\tof chaperone\tper second\trecorded B\tfsyncs\tfsync µs\t\n")
	for i, first := range t.rows {
		if slices.ContainsFunc(t.rows[:i], first.same) {
			continue
		}
		median := func(of func(row) float64, digits int) string {
			var values []float64
			for _, r := range t.rows {
				if first.same(r) {
					values = append(values, of(r))
				}
			}
			slices.Sort(values)
			return decimal(values[len(values)/2], digits)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", first.protocol, first.route,
			median(func(r row) float64 { return r.cpuRatio }, 2), median(func(r row) float64 { return r.rateRatio }, 2),
			median(func(r row) float64 { return r.perOne(r.used.total()) }, 0), median(func(r row) float64 { return r.perOne(r.used.envoy) }, 0),
			median(func(r row) float64 { return r.perOne(r.used.serve) }, 0), median(row.rate, 0),
			median(func(r row) float64 { return r.each(float64(r.stored)) }, 0),
			median(func(r row) float64 { return r.each(r.synced.count) }, 2),
			median(func(r row) float64 { return r.each(float64(r.synced.took) / float64(time.Microsecond)) }, 0))
	}
	_ = w.Flush() // into memory
	return fmt.Sprintf("Medians of %d rounds, %d clients of HTTP and %d of PostgreSQL; ratios to Envoy alone:\n%s", t.round, benchClients, pgClients, b.String())
}

// besidePooler is the throughput of the gateway beside that of PgBouncer, both
// behind Envoy, in each round.
func (t *table) besidePooler() string {
	var ratios []string
	for _, pool := range t.rows {
		for _, r := range t.rows {
			if pool.route == pooled && r.round == pool.round && r.protocol == pool.protocol && strings.HasSuffix(r.route, "+record") {
				ratios = append(ratios, decimal(r.rate()/pool.rate(), 2))
			}
		}
	}
	return "transactions per second beside " + pooled + ": " + strings.Join(ratios, ", ") + "\n"
}

func (r row) same(other row) bool { return r.protocol == other.protocol && r.route == other.route }
