package transcript

import (
	"context"
	"errors"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// A notebook keeps what is appended.
type notebook struct {
	chunks []access.StreamChunk
	fail   error
}

func (n *notebook) append(_ context.Context, c *access.StreamChunk) error {
	n.chunks = append(n.chunks, *c)
	return n.fail
}

func (n *notebook) text(name string) (text string, omitted int64) {
	for _, c := range n.chunks {
		if c.Name == name {
			text += c.Text
			omitted += c.Omitted
		}
	}
	return text, omitted
}

var errFull = errors.New("full")

func open(n *notebook, change func(*Config)) *Transcript {
	c := Config{Append: n.append, Text: true, Bound: 1 << 10, Full: func() error { return errFull }}
	if change != nil {
		change(&c)
	}
	return New(c)
}

const key = "AKIAIOSFODNN7EXAMPLE" // an example that its maker publishes

// TestSecretsAreNotKept, wherever a stream is cut; what is beside them is.
func TestSecretsAreNotKept(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{access.Stdout: "é id " + key + " ü\n", "coloured": "a \x1b[31mAKIA\x1b[0mIOSFODNN7EXAMPLE b\n"} {
		for cut := range len(text) {
			n := &notebook{}
			tr := open(n, func(c *Config) { c.Terminal = name == "coloured" })
			for _, piece := range []string{text[:cut], text[cut:]} {
				if err := tr.Write(t.Context(), name, []byte(piece)); err != nil {
					t.Fatal(err)
				}
			}
			sums, err := tr.Sums(t.Context())
			got, omitted := n.text(name)
			if err != nil || omitted != 0 || strings.Contains(got, "EXAMPLE") || got[:2] != text[:2] || got[len(got)-3:] != text[len(text)-3:] {
				t.Fatalf("cut at %d: %q, %d omitted, %v", cut, got, omitted, err)
			}
			if len(sums) != 1 || sums[0].Bytes != int64(len(text)) || len(sums[0].SHA256) != 64 {
				t.Fatalf("%+v", sums)
			}
		}
	}
	if got := string(Text([]byte("a " + key + " b"))); strings.Contains(got, key) || !strings.HasPrefix(got, "a ") {
		t.Errorf("%q", got)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	n := &notebook{}
	tr := open(n, func(c *Config) { c.Bound = 10 })
	for range 3 {
		if err := tr.Write(t.Context(), access.Stdout, []byte("1234 67\n")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tr.Sums(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text, omitted := n.text(access.Stdout); len(text) != 10 || omitted != 14 {
		t.Errorf("%q, %d omitted", text, omitted)
	}
	if err := tr.Write(t.Context(), access.Stdout, []byte("x")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}

	terminal := open(&notebook{}, func(c *Config) { c.Bound, c.Terminal = 10, true })
	var err error
	for i := 0; i < 3 && err == nil; i++ {
		err = terminal.Write(t.Context(), access.Stdout, []byte("1234 67\n"))
	}
	if !errors.Is(err, errFull) {
		t.Errorf("a terminal goes on: %v", err)
	}

	n = &notebook{}
	many := open(n, func(c *Config) { c.Text = false })
	for i := range 2 * maxStreams {
		if err := many.Write(t.Context(), strings.Repeat("x", i+1), []byte("data")); err != nil {
			t.Fatal(err)
		}
	}
	sums, err := many.Sums(t.Context())
	if err != nil || len(sums) != maxStreams || sums[maxStreams-1].Bytes != 4*(maxStreams+1) {
		t.Errorf("%d streams, %v", len(sums), err)
	}
}

// TestNothingGoesOnUnrecorded: a fault of the recorder is a fault of the stream.
func TestNothingGoesOnUnrecorded(t *testing.T) {
	t.Parallel()
	n := &notebook{fail: errFull}
	tr := open(n, nil)
	if err := tr.Write(t.Context(), access.Stdout, []byte("one two three four five six seven eight nine ten\n")); !errors.Is(err, errFull) {
		t.Errorf("written: %v", err)
	}
	if err := tr.Size(t.Context(), "xterm", 80, 24); !errors.Is(err, errFull) {
		t.Errorf("sized: %v", err)
	}
	binary := open(&notebook{}, nil)
	if err := binary.Write(t.Context(), access.Stdout, []byte{0, 1, 2, 0xff, 0xfe}); err != nil {
		t.Errorf("the twin: %v", err)
	}
}
