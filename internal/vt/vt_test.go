package vt

import (
	"slices"
	"strings"
	"testing"
)

// split renders text as it is and sequences in angle brackets.
func split(in string) string {
	var s Splitter
	var b strings.Builder
	sequence := func(q []byte) {
		if len(q) > 0 {
			b.WriteString("<" + strings.ReplaceAll(string(q), "\x1b", "^") + ">")
		}
	}
	for _, c := range []byte(in) {
		text, q := s.Next(c)
		sequence(q)
		if text {
			b.WriteByte(c)
		}
	}
	sequence(s.Rest())
	return b.String()
}

func TestSplitter(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain\ttext\r\n":                 "plain\ttext\r\n",
		"\x1b[1;31mred\x1b[0m":            "<^[1;31m>red<^[0m>",
		"a\bb\x00c\x7f":                   "a<\b>b<\x00>c<\x7f>",
		"\x1b]0;title\x07x":               "<^]0;title\x07>x",
		"\x1b]8;;u\x1b\\x\x1bP1$r\x1b\\y": "<^]8;;u^\\>x<^P1$r^\\>y",
		"\x1b(Bx\x1b=y\x1b7":              "<^(B>x<^=>y<^7>",
		"\x1b[3\x1b[4mx":                  "<^[3><^[4m>x",
		"\x1b[3\x18x":                     "<^[3\x18>x",
		"\x1b]0;a\x1b[31mb\x07c":          "<^]0;a^[31mb\x07>c",
		"\x1b[?25":                        "<^[?25>",
		"\x1b\x1bc":                       "<^><^c>",
		"":                                "",
	} {
		if got := split(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// Nothing is lost, and no sequence is longer than the bound.
func FuzzSplitter(f *testing.F) {
	f.Add([]byte("a\x1b[31mb\x1b]0;t\x07\x1b\x1bP\x18"))
	f.Add([]byte("\x1b]" + strings.Repeat("x", MaxSequence+10)))
	f.Fuzz(func(t *testing.T, in []byte) {
		var s Splitter
		var out []byte
		for _, c := range in {
			text, q := s.Next(c)
			if len(q) > MaxSequence {
				t.Fatalf("a sequence of %d bytes", len(q))
			}
			if out = append(out, q...); text {
				out = append(out, c)
			}
		}
		if out = append(out, s.Rest()...); !slices.Equal(in, out) {
			t.Fatalf("%q became %q", in, out)
		}
	})
}
