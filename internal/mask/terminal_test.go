package mask_test

import (
	"regexp"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/mask"
)

func TestTerminal(t *testing.T) {
	t.Parallel()
	const key = "AKIAIOSFODNN7EXAMPLE"
	m := compile(t, "API_KEY,CREDIT_CARD")
	for name, c := range map[string]struct{ in, want string }{
		"nothing":               {"\x1b[01;34mdir\x1b[0m  file\r\n$ ", "\x1b[01;34mdir\x1b[0m  file\r\n$ "},
		"a key":                 {"key " + key + " \x1b[mend", "key *** \x1b[mend"},
		"a key of two colours":  {"key \x1b[31mAKIA\x1b[mIOSFODNN7EXAMPLE.\r\n", "key \x1b[31m***\x1b[m.\r\n"},
		"a key between colours": {"\x1b[31m" + key + "\x1b[m end", "\x1b[31m***\x1b[m end"},
		"a NUL in a key":        {"AKIAIOSF\x00ODNN7EXAMPLE ", "***\x00 "},
		"a card in pieces":      {"4111\x1b[1m-1111-\x1b[0m1111-1111 ", "***\x1b[1m\x1b[0m "},
		"a title":               {"\x1b]0;" + key + "\x07$ ", "\x1b]0;***\x07$ "},
		"a link":                {"\x1b]8;;http://h/?k=" + key + "\x1b\\here\x1b]8;;\x1b\\", "\x1b]8;;http://h/?k=***\x1b\\here\x1b]8;;\x1b\\"},
		"cut in a sequence":     {"a\x1b[3", "a\x1b[3"},
		"cut in a title":        {"a\x1b]0;" + key, "a\x1b]0;***"},
		"broken off":            {"\x1b[3\x18a\x1b[3\x1b[0mb", "\x1b[3\x18a\x1b[3\x1b[0mb"},
		"two bytes":             {"\x1b(B\x1b=\x1b7x\x1b8", "\x1b(B\x1b=\x1b7x\x1b8"},
		"not UTF-8":             {"\xff\xfe " + key + "\xff", "\xff\xfe ***\xff"},
		"a key at the end of what a title may hold": {"\x1b]0;" + strings.Repeat("-", 4096-4-7) + " " + key + " \x07", "\x1b]0;" + strings.Repeat("-", 4096-4-7) + " *** \x07"},
		"a bell": {"a\x07b\b \b", "a\x07b\b \b"},
	} {
		got, err := everySplit(t, func() mask.Writer { return m.NewTerminal() }, []byte(c.in))
		if err != nil || got != c.want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, c.want)
		}
	}
	w := m.NewTerminal()
	if _, err := w.Write([]byte("key \x1b[31mAKIA\x1b[mIOSFODNN7EXAMPLE \x1b]0;" + key + "\x07")); err != nil || w.Masked() != 2 {
		t.Errorf("%d values masked, %v", w.Masked(), err)
	}
}

// Whatever a host sends, what waits is bounded.
func TestTerminalIsBounded(t *testing.T) {
	t.Parallel()
	m := compile(t, "API_KEY")
	for name, piece := range map[string]string{"an endless title": "\x1b]0;" + strings.Repeat("a", 1000), "sequences in a word": "\x1b[m", "an endless sequence": "\x1b[" + strings.Repeat("1", 1000)} {
		w := m.NewTerminal()
		in, out := 0, 0
		_, _ = w.Write([]byte("AKIA"))
		for range 400 {
			shown, err := w.Write([]byte(piece))
			if err != nil {
				t.Fatal(err)
			}
			in, out = in+len(piece), out+len(shown)
		}
		rest, err := w.Close()
		if err != nil || len(rest) > 64<<10 {
			t.Errorf("%s: of %d bytes %d came at the end (%v)", name, in, len(rest), err)
		}
	}
}

var sequences = regexp.MustCompile(`\x1b\[[^\x40-\x7e]*[\x40-\x7e]|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]`)

// FuzzTerminal: the outcome is the same however the output is split, and a
// secret with sequences strewn over it does not get out.
func FuzzTerminal(f *testing.F) {
	f.Add([]byte("a \x1b[31mb\x1b[m \x1b]0;t\x07"), uint8(0), uint8(3), uint8(5))
	f.Add([]byte("\x1b\x1b[\x18\x00\x1bP1\x1b\\x"), uint8(1), uint8(1), uint8(2))
	m := compile(f, strings.Join(mask.Detectors(), ","))
	f.Fuzz(func(t *testing.T, text []byte, pick, a, b uint8) {
		whole, err := run(m.NewTerminal(), text)
		if err != nil {
			t.Fatal(err)
		}
		if split, err := run(m.NewTerminal(), text, int(a), int(b)); err != nil || split != whole {
			t.Fatalf("whole %q\nsplit %q, %v", whole, split, err)
		}
		secret := secrets[int(pick)%len(secrets)]
		at := int(a) % len(secret)
		in := "\x18 " + secret[:at] + "\x1b[0;3" + "1m" + secret[at:] + " "
		out, err := run(m.NewTerminal(), []byte(in), int(b))
		if err != nil || strings.Contains(sequences.ReplaceAllString(out, ""), secret) {
			t.Fatalf("%q is in %q (%v)", secret, out, err)
		}
	})
}
