package sql

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

const benchQuery = "select c.id, c.name, c.ssn, o.total from customers c join orders o on o.customer_id = c.id where o.total > $1 order by o.at limit 10"

func BenchmarkAnalyze(b *testing.B) {
	a, cat := newTestAnalyzer(b), testCatalog(b)
	for b.Loop() {
		if st := judge(b, a, cat, benchQuery); !st.Action.ReadOnly {
			b.Fatal(st.Refusal)
		}
	}
}

// BenchmarkBind leaves the parser out.
func BenchmarkBind(b *testing.B) {
	a, cat := newTestAnalyzer(b), testCatalog(b)
	parsed, err := pool.Parse(context.Background(), benchQuery)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if st, err := a.judge(context.Background(), benchQuery, cat, parsed); err != nil || st.Refusal != nil {
			b.Fatal(err, st.Refusal)
		}
	}
}

func BenchmarkMask(b *testing.B) {
	a, cat := newTestAnalyzer(b), testCatalog(b)
	st := judge(b, a, cat, benchQuery)
	for b.Loop() {
		if f, err := a.Mask(context.Background(), st, cat, access.Obligations{Masks: secrets}); err != nil || len(f.Masked) != 1 {
			b.Fatal(err)
		}
	}
}

// firstSeen is a text of 200 characters that no statement before had, with a
// column to mask.
func firstSeen(i int) string {
	text := fmt.Sprintf("select c.id, c.name, c.ssn, o.total, o.at from customers c join orders o on o.customer_id = c.id where o.total > %d and c.name like 'n%d%%' order by o.at desc limit 10 -- ", i, i)
	return text + strings.Repeat("x", 200-len(text))
}

func judgeFirstSeen(b *testing.B, a *Analyzer, cat *catalog.Snapshot, i int) {
	st, err := a.Analyze(context.Background(), firstSeen(i), cat)
	if err != nil || !st.Action.ReadOnly {
		b.Fatal(err, st)
	}
	if f, err := a.Mask(context.Background(), st, cat, access.Obligations{Masks: secrets}); err != nil || len(f.Masked) != 1 {
		b.Fatal(err)
	}
}

// BenchmarkFirstSeen judges and rewrites a statement that was never seen.
func BenchmarkFirstSeen(b *testing.B) {
	a, cat := newTestAnalyzer(b), testCatalog(b)
	i, before := 0, processorTime()
	for b.Loop() {
		i++
		judgeFirstSeen(b, a, cat, i)
	}
	b.ReportMetric(float64((processorTime()-before).Microseconds())/1000/float64(i), "cpu-ms/op")
}

// BenchmarkFirstSeen16 does so for 16 clients at once and reports how long they
// waited, and the most memory that the parser's workers had.
func BenchmarkFirstSeen16(b *testing.B) {
	a, cat := newTestAnalyzer(b), testCatalog(b)
	waited := make([]time.Duration, b.N)
	var next atomic.Int64
	var clients sync.WaitGroup
	b.ResetTimer()
	for range 16 {
		clients.Go(func() {
			for i := int(next.Add(1)) - 1; i < b.N; i = int(next.Add(1)) - 1 {
				began := time.Now()
				judgeFirstSeen(b, a, cat, i)
				waited[i] = time.Since(began)
			}
		})
	}
	clients.Wait()
	b.StopTimer()
	slices.Sort(waited)
	b.ReportMetric(float64(waited[len(waited)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(waited[len(waited)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(workersPeak(), "workers-peak-MB")
}

// workersPeak is the most resident memory that the children of this process
// ever had, together.
func workersPeak() float64 {
	kilobytes := 0
	for _, pid := range children() {
		status, _ := os.ReadFile("/proc/" + pid + "/status")
		for line := range strings.Lines(string(status)) {
			var peak int
			if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &peak); n == 1 {
				kilobytes += peak
			}
		}
	}
	return float64(kilobytes) / 1024
}

func children() []string {
	var list []string
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		list = append(list, strings.Fields(string(b))...)
	}
	return list
}

// processorTime is what this process and its workers used so far, which other
// work on the machine does not raise as it does the time that passes.
func processorTime() time.Duration {
	var sum time.Duration
	for _, pid := range append(children(), "self") {
		b, _ := os.ReadFile("/proc/" + pid + "/stat")
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) < 13 {
			continue
		}
		for _, ticks := range fields[11:13] {
			n, _ := strconv.Atoi(ticks)
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
}
