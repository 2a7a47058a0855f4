package mask

import (
	"encoding/base64"
	"strings"
	"testing"
)

const literal = `k3y/"with+odd"=bytes`

func TestLiterals(t *testing.T) {
	t.Parallel()
	l := NewLiterals(literal, "short")
	for name, c := range map[string]struct{ form, around string }{
		"as it is":       {literal, "Authorization: Bearer %"},
		"in JSON":        {`k3y/\"with+odd\"=bytes`, `{"got": "%", "next": 1}`},
		"in a query":     {"k3y%2F%22with%2Bodd%22%3Dbytes", "https://x/?key=%&a=b"},
		"in base64":      {base64.StdEncoding.EncodeToString([]byte(literal)), "data:%;"},
		"twice":          {literal + literal, "%."},
		"almost, before": {literal[:8] + literal, "%."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := strings.Replace(c.around, "%", c.form, 1)
			got, n := l.Replace(text)
			if n == 0 || strings.Contains(got, literal[6:]) || len(got) != len(text) || !strings.Contains(got, "****") {
				t.Errorf("%d in %s", n, got)
			}
			for cut := range text {
				s := l.NewStream()
				var out strings.Builder
				for _, piece := range []string{text[:cut], "", text[cut:]} {
					b, _ := s.Write([]byte(piece))
					out.Write(b)
				}
				b, _ := s.Close()
				if out.Write(b); out.String() != got || s.Masked() != n {
					t.Fatalf("cut at %d: %s, not %s", cut, out.String(), got)
				}
			}
		})
	}
	for _, text := range []string{"", "nothing of it", "short", literal[:12], strings.Repeat("k3y/", 100)} {
		if got, n := l.Replace(text); n != 0 || got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
	if NewLiterals("short", "") != nil {
		t.Error("short secrets are looked for")
	}
	if got, n := (*Literals)(nil).Replace("x"); got != "x" || n != 0 {
		t.Error("no literals replace something")
	}
}

// FuzzLiterals: whatever stands around the secret and wherever it is split, it
// does not come out, and the length stays.
func FuzzLiterals(f *testing.F) {
	f.Add("before ", " after", 3, 9)
	f.Add(literal[:5], literal[3:], 1, 25)
	f.Fuzz(func(t *testing.T, before, after string, first, second int) {
		text := before + literal + after
		cut := func(n int) int { return min(max(n, 0), len(text)) }
		a, b := cut(first), cut(second)
		a, b = min(a, b), max(a, b)
		s := NewLiterals(literal).NewStream()
		var out strings.Builder
		for _, piece := range []string{text[:a], text[a:b], text[b:]} {
			got, _ := s.Write([]byte(piece))
			out.Write(got)
		}
		rest, _ := s.Close()
		out.Write(rest)
		if got := out.String(); strings.Contains(got, literal) || len(got) != len(text) {
			t.Errorf("%q came out of %q", got, text)
		}
	})
}
