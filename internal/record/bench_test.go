package record

import (
	"fmt"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// BenchmarkAppend appends decisions (Synced) and rows (Written) from many
// goroutines to the real disk.
func BenchmarkAppend(b *testing.B) {
	for name, c := range map[string]struct {
		level access.Durability
		ev    access.Event
	}{
		"synced":      {access.Synced, ask("ses", "r")},
		"written":     {access.Written, row("ses", "r", "x")},
		"written-32k": {access.Written, row("ses", "r", strings.Repeat("x", 32<<10))},
	} {
		for _, parallel := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%d", name, parallel), func(b *testing.B) {
				r, err := Open(Config{Dir: b.TempDir()})
				if err != nil {
					b.Fatal(err)
				}
				b.SetParallelism(parallel)
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := r.Append(b.Context(), c.level, c.ev); err != nil {
							b.Error(err)
						}
					}
				})
				b.StopTimer()
				if err := r.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// BenchmarkRead verifies, indexes and reads a recording of 10,000 requests.
func BenchmarkRead(b *testing.B) {
	d := newTestDisk(b.TempDir())
	r := openTest(b, Config{}, d, slowHead())
	bytes := int64(0)
	for i := range 10_000 {
		id := fmt.Sprintf("s%d", i/100)
		if err := r.Append(b.Context(), access.Written, ask(id, "q"), row(id, "q", strings.Repeat("x", 1000)), ended(id, "q")); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		b.Fatal(err)
	}
	bytes = r.writer.synced.offset
	b.Run("verify", func(b *testing.B) {
		b.SetBytes(bytes)
		for b.Loop() {
			if _, err := Verify(string(d.folder)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("index", func(b *testing.B) {
		b.SetBytes(bytes)
		for b.Loop() {
			if _, err := newReader(string(d.folder)).Sessions(b.Context(), SessionFilter{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("one-session", func(b *testing.B) {
		reader := newReader(string(d.folder))
		if _, err := reader.Sessions(b.Context(), SessionFilter{}); err != nil { // makes the index
			b.Fatal(err)
		}
		for b.Loop() {
			for _, err := range reader.Session(b.Context(), "s50") {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
