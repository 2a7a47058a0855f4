package postgres

import (
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"chaperone.dev/chaperone/internal/access"
)

// Messages of every size come out as they went in, however the connection cuts
// them, and a source at rest holds no big buffer.
func TestSource(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	var sizes []int
	var sent []byte
	for i := range 400 {
		size := []int{0, 1, 90, smallBuffer - headerSize, smallBuffer, bigBuffer - headerSize, bigBuffer, 3 * bigBuffer}[random.IntN(8)]
		sizes = append(sizes, size)
		sent = appendFrame(sent, byte('a'+i%26), bytes.Repeat([]byte{byte(i)}, size))
	}
	for name, from := range map[string]io.Reader{
		"whole": bytes.NewReader(sent), "halves": iotest.HalfReader(bytes.NewReader(sent)), "bytes": iotest.OneByteReader(bytes.NewReader(sent)),
		"end with data": iotest.DataErrReader(bytes.NewReader(sent)),
	} {
		s := newSource(from, new(buffers))
		var into []byte
		for i, want := range sizes {
			s.whole()
			typ, size, err := s.header(1 << 20)
			if err != nil || typ != byte('a'+i%26) || size != want {
				t.Fatalf("%s: message %d: %q, %d bytes, %v", name, i, typ, size, err)
			}
			var body []byte
			if body, into, err = s.body(into, size); err != nil || len(body) != want || bytes.Count(body, []byte{byte(i)}) != want {
				t.Fatalf("%s: message %d: a body of %d bytes, %v", name, i, len(body), err)
			}
		}
		if _, _, err := s.header(1 << 20); err != io.EOF {
			t.Errorf("%s: at the end %v", name, err)
		}
		if s.rest(); len(s.buf) != smallBuffer {
			t.Errorf("%s: at rest it holds %d bytes", name, len(s.buf))
		}
	}
	s := newSource(strings.NewReader("Q\x00\x00"), new(buffers))
	if _, _, err := s.header(10); err != io.ErrUnexpectedEOF {
		t.Errorf("a torn header: %v", err)
	}
}

// Bind finds out nothing when nothing has changed; Execute is decided each time,
// with its values, and new rules count from the next Bind on.
func TestBindIsJudgedWhenSomethingChanged(t *testing.T) {
	t.Parallel()
	g := start(t, "18")
	w := g.wire(t)
	asked := func() int {
		g.policy.mu.Lock()
		defer g.policy.mu.Unlock()
		return len(g.policy.asked)
	}
	run := func(value string) (lines []string, decisions int) {
		before := asked()
		w.send(bind("", "s", value), execute(""), syncMessage)
		return w.until(1), asked() - before
	}
	w.send(parse("s", "select name from customers where id = $1"), syncMessage)
	w.until(1)
	for range 2 {
		if lines, n := run("1"); n != 1 || !slices.Contains(lines, "row name-1") {
			t.Errorf("unchanged: %d decisions, %q", n, lines)
		}
	}
	g.policy.set(func(req access.Request) access.Decision {
		if slices.ContainsFunc(req.Action.SQL.Parameters, func(p access.BoundParameter) bool { return p.Value == "2" }) {
			return access.Decision{Effect: access.Deny, Reason: access.DeniedByRule, Revision: "r1", Message: "not this one"}
		}
		return allowed(access.Obligations{})
	})
	if lines, n := run("1"); n != 2 || !slices.Contains(lines, "row name-1") {
		t.Errorf("new rules: %d decisions, %q", n, lines)
	}
	lines, n := run("2")
	if n != 1 || slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "row") }) || !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "ERROR") }) {
		t.Errorf("a value that is denied: %d decisions, %q", n, lines)
	}
	events := g.recorder.all()
	if last := events[len(events)-1]; last.Decided == nil || last.Decided.Decision.Effect != access.Deny {
		t.Errorf("the last event is %+v", last)
	}
	if lines, _ := run("3"); !slices.Contains(lines, "row name-3") {
		t.Errorf("afterwards: %q", lines)
	}
}
