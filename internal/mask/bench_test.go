package mask_test

import (
	"fmt"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/mask"
)

func document() []byte {
	var b strings.Builder
	b.WriteString(`{"customers":[`)
	for i := range 1000 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"id": %d, "name": "Customer Number %d", "email": "c%d@example.com", "ssn": "123-45-%04d", "balance": %d.25, "tags": ["a","b"], "note": "called twice, wants a refund for order %d"}`, i, i, i, i+1, i*17, i)
	}
	b.WriteString("]}")
	return []byte(b.String())
}

func benchmark(b *testing.B, writer func() mask.Writer, body []byte) {
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		w := writer()
		for p := body; len(p) > 0; {
			n := min(len(p), 16<<10)
			if _, err := w.Write(p[:n]); err != nil {
				b.Fatal(err)
			}
			p = p[n:]
		}
		if _, err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkJSONFields(b *testing.B) {
	m := compile(b, "/customers/*/ssn", "/customers/*/email partial")
	benchmark(b, func() mask.Writer { return m.NewJSON() }, document())
}

func BenchmarkJSONDetectors(b *testing.B) {
	m := compile(b, strings.Join(mask.Detectors(), ","))
	benchmark(b, func() mask.Writer { return m.NewJSON() }, document())
}

func BenchmarkTextWithoutFindings(b *testing.B) {
	m := compile(b, strings.Join(mask.Detectors(), ","))
	line := "2026-01-02T03:04:05Z INFO request served method=GET path=/index.html status=200 bytes=5120 duration=12ms\n"
	benchmark(b, func() mask.Writer { return m.NewText() }, []byte(strings.Repeat(line, 2000)))
}

func BenchmarkTextFindings(b *testing.B) {
	m := compile(b, strings.Join(mask.Detectors(), ","))
	benchmark(b, func() mask.Writer { return m.NewText() }, document())
}

func BenchmarkCell(b *testing.B) {
	m := compile(b, strings.Join(mask.Detectors(), ","))
	for name, cell := range map[string]string{"clean": "Customer Number 17, Main Street 5", "card": "4111 1111 1111 1111"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Text([]byte(cell))
			}
		})
	}
}
