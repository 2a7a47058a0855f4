package record

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func opened(id, user, resource string, at time.Time) access.Event {
	return access.Event{Session: id, Time: at, Opened: &access.SessionOpened{Session: access.Session{
		ID: id, Opened: at, Client: "10.0.0.7:5000", Resource: access.Resource{Name: resource, Kind: access.Postgres},
		Principal: access.Principal{Issuer: "dex", Subject: "sub", User: user, Subagent: "agent", Workflow: "nightly"}}}}
}

func closed(id string, at time.Time) access.Event {
	return access.Event{Session: id, Time: at, Closed: &access.SessionClosed{Cause: "client left"}}
}

func ended(session, id string) access.Event {
	return access.Event{Session: session, Request: id, Ended: &access.Ended{Tag: "SELECT 1", Rows: 1}}
}

func denied(session, id string) access.Event {
	return access.Event{Session: session, Request: id, Denied: &access.Denied{Denial: access.Denial{Reason: access.Unreadable}}}
}

func deniedByRule(session, id string) access.Event {
	ev := ask(session, id)
	ev.Decided.Decision.Effect = access.Deny
	return ev
}

func approval(session, id string, state access.ApprovalState) access.Event {
	return access.Event{Session: session, Request: id, Approval: &access.ApprovalEvent{ID: id, State: state}}
}

// story is what three sessions recorded, interleaved.
func story() []access.Event {
	held := ask("s1", "held")
	held.Decided.Decision.Effect = access.Approve
	refused := ask("s1", "refused")
	refused.Decided.Decision.Effect = access.Approve
	return []access.Event{
		opened("s1", "ann", "orders", noon),
		ask("s1", "q1"),
		opened("s2", "bob", "billing", noon.Add(time.Minute)),
		row("s1", "q1", "x"),
		ended("s1", "q1"),
		deniedByRule("s2", "q2"),
		held,
		approval("s1", "held", access.Pending),
		{Denied: &access.Denied{Denial: access.Denial{Reason: access.Unauthenticated}}}, // no session
		denied("s2", "q3"),
		approval("s1", "held", access.Granted),
		approval("s1", "held", access.Consumed),
		held, // decided again
		{Session: "s1", Request: "held", Executed: &access.Executed{SQL: "x", Approval: "held"}},
		closed("s2", noon.Add(2*time.Minute)),
		ended("s1", "held"),
		refused,
		approval("s1", "refused", access.Refused),
		denied("s1", "refused"),
		opened("s3", "ann", "billing", noon.Add(3*time.Minute)),
		ask("s3", "q4"), // under way
		{Admin: &access.Administrative{Act: "session.kill", On: "s1"}},
	}
}

// Summaries do not depend on where segments end or on whether the recorder is
// alive.
func TestSessions(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 300, 1000, 2500} {
		for _, live := range []bool{true, false} {
			t.Run(fmt.Sprintf("segments of %d, live %v", size, live), func(t *testing.T) {
				t.Parallel()
				d := newTestDisk(t.TempDir())
				r := openTest(t, Config{SegmentBytes: size, Clock: func() time.Time { return noon }}, d, slowHead())
				for _, ev := range story() {
					appendAll(t, r, access.Written, ev)
					if _, err := r.Reader().Sessions(t.Context(), SessionFilter{}); err != nil {
						t.Fatal(err)
					}
				}
				reader := r.Reader()
				if !live {
					if err := r.Close(); err != nil {
						t.Fatal(err)
					}
					var err error
					if reader, err = OpenReader(string(d.folder)); err != nil {
						t.Fatal(err)
					}
				}
				checkStory(t, reader)
			})
		}
	}
}

func checkStory(t *testing.T, reader *Reader) {
	t.Helper()
	got, err := reader.Sessions(t.Context(), SessionFilter{})
	if err != nil || len(got) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	type counts struct {
		id, user, resource, cause          string
		open                               bool
		requests, denied, approved, events int
		opened, ended                      time.Time
	}
	want := []counts{
		{"s3", "ann", "billing", "", true, 1, 0, 0, 2, noon.Add(3 * time.Minute), time.Time{}},
		{"s2", "bob", "billing", "client left", false, 2, 2, 0, 4, noon.Add(time.Minute), noon.Add(2 * time.Minute)},
		{"s1", "ann", "orders", "", true, 3, 1, 1, 14, noon, time.Time{}},
	}
	for i, s := range got {
		c := counts{s.ID, s.Principal.User, s.Resource.Name, s.Cause, s.Closed.IsZero(),
			s.Requests, s.Denied, s.Approved, s.Events, s.Opened, s.Closed}
		if c != want[i] {
			t.Errorf("got  %+v\nwant %+v", c, want[i])
		}
	}
	for _, s := range got {
		var evs []access.Event
		for ev, err := range reader.Session(t.Context(), s.ID) {
			if err != nil {
				t.Fatal(err)
			}
			if ev.Session != s.ID {
				t.Errorf("event of %q in %q", ev.Session, s.ID)
			}
			evs = append(evs, ev)
		}
		if len(evs) != s.Events || evs[0].Seq != s.First || evs[len(evs)-1].Seq != s.Last {
			t.Errorf("%s: %d events, want %+v", s.ID, len(evs), s)
		}
	}
}

func TestSessionFilter(t *testing.T) {
	t.Parallel()
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{SegmentBytes: 1000, Clock: func() time.Time { return noon }}, d, slowHead())
	appendAll(t, r, access.Written, story()...)
	for name, c := range map[string]struct {
		filter SessionFilter
		want   []string
	}{
		"user":      {SessionFilter{User: "ann"}, []string{"s3", "s1"}},
		"resource":  {SessionFilter{Resource: "billing"}, []string{"s3", "s2"}},
		"subagent":  {SessionFilter{Subagent: "other"}, nil},
		"workflow":  {SessionFilter{Workflow: "nightly", User: "bob"}, []string{"s2"}},
		"open":      {SessionFilter{Open: true}, []string{"s3", "s1"}},
		"newest":    {SessionFilter{Limit: 1}, []string{"s3"}},
		"newest of": {SessionFilter{Limit: 1, Resource: "orders"}, []string{"s1"}},
		"until":     {SessionFilter{Until: noon.Add(time.Minute)}, []string{"s1"}},
		"since":     {SessionFilter{Since: noon.Add(2 * time.Minute)}, []string{"s2"}},
	} {
		got, err := r.Reader().Sessions(t.Context(), c.filter)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, s := range got {
			ids = append(ids, s.ID)
		}
		if !slices.Equal(ids, c.want) {
			t.Errorf("%s: %q, want %q", name, ids, c.want)
		}
	}
}

func TestNoSuchSession(t *testing.T) {
	t.Parallel()
	r := openTest(t, Config{}, newTestDisk(t.TempDir()), slowHead())
	n := 0
	for _, err := range r.Reader().Session(t.Context(), "x") {
		n++
		if !errors.Is(err, ErrNoSession) {
			t.Errorf("%v, want ErrNoSession", err)
		}
	}
	if n != 1 {
		t.Errorf("%d answers", n)
	}
	if _, err := OpenReader(t.TempDir()); err == nil {
		t.Error("an empty folder was opened")
	}
}

// The index stays within its bound and answers the same.
func TestIndexIsBounded(t *testing.T) {
	t.Parallel()
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{SegmentBytes: 2000}, d, slowHead())
	for i := range 60 {
		id := fmt.Sprintf("s%d", i)
		appendAll(t, r, access.Written, opened(id, "ann", "orders", noon), ask(id, "q"))
	}
	reader := r.Reader()
	reader.index.bound = 10
	for range 2 {
		got, err := reader.Sessions(t.Context(), SessionFilter{})
		if err != nil || len(got) != 60 {
			t.Fatalf("%d sessions, %v", len(got), err)
		}
		parts := 0
		for _, si := range reader.index.segments {
			parts += len(si.parts)
		}
		if parts != reader.index.parts || parts > 10 || parts == 0 {
			t.Errorf("%d parts kept, counted as %d", parts, reader.index.parts)
		}
		for _, id := range []string{"s0", "s30", "s59"} {
			n := 0
			for _, err := range reader.Session(t.Context(), id) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
			if n != 2 {
				t.Errorf("%s has %d events", id, n)
			}
		}
	}
}

// A known session is read from its own place, not from the beginning.
func TestSessionReadsItsOwnPart(t *testing.T) {
	t.Parallel()
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{}, d, slowHead())
	appendAll(t, r, access.Written, numbered(20)...)
	appendAll(t, r, access.Written, opened("mine", "ann", "orders", noon), ask("mine", "q"), closed("mine", noon))
	appendAll(t, r, access.Written, numbered(20)...)
	spans, err := r.Reader().index.find(t.Context(), "mine")
	if err != nil || len(spans) != 1 {
		t.Fatalf("%+v, %v", spans, err)
	}
	b := readFile(t, filepath.Join(string(d.folder), segmentName(1)))
	starts := lineStarts(b)
	if s := spans[0]; s.from != (place{int64(starts[21]), 21, 20}) || s.to != int64(starts[24]) {
		t.Errorf("%+v, want from %d to %d", s, starts[21], starts[24])
	}
}

// Readers see whole lines only, and stop at damage with its place.
func TestReaderStopsAtDamage(t *testing.T) {
	t.Parallel()
	from := small(t)
	for _, c := range []struct {
		name   string
		change func(b []byte, starts []int) []byte
		events int
		line   int
	}{
		{"whole", func(b []byte, _ []int) []byte { return b }, 9, 0},
		{"changed", func(b []byte, s []int) []byte { b[s[2]+99] ^= 1; return b }, 4, 3},
		{"header changed", func(b []byte, s []int) []byte { b[20] ^= 1; return b }, 3, 1},
		{"an event missing", func(b []byte, s []int) []byte { return slices.Concat(b[:s[2]], b[s[3]:]) }, 4, 3},
		{"its end missing", func(b []byte, s []int) []byte { return b[:s[2]] }, 4, 1},
		{"cut within a line", func(b []byte, s []int) []byte { return b[:s[2]+9] }, 4, 3},
		{"empty", func(b []byte, s []int) []byte { return nil }, 3, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := copyDir(t, from)
			name := filepath.Join(dir, segmentName(2))
			b := readFile(t, name)
			writeFile(t, name, c.change(b, lineStarts(b)))
			reader, err := OpenReader(dir)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			var damage *Damage
			for _, err := range reader.Events(t.Context()) {
				if err != nil && !errors.As(err, &damage) {
					t.Fatal(err)
				}
				if err == nil {
					n++
				}
			}
			if n != c.events || (damage == nil) != (c.line == 0) || damage != nil && damage.Line != c.line {
				t.Errorf("%d events, %v; want %d and line %d", n, damage, c.events, c.line)
			}
			_, err = reader.Sessions(t.Context(), SessionFilter{})
			if errors.As(err, &damage) != (c.line != 0 && c.name != "its end missing") {
				t.Errorf("sessions: %v", err)
			}
		})
	}
}

func TestReadersStopWithTheirContext(t *testing.T) {
	t.Parallel()
	reader, err := OpenReader(small(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range reader.Events(ctx) {
		if n++; n == 2 {
			cancel()
		}
		if n == 3 && !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
	if n != 3 {
		t.Errorf("%d events", n)
	}
	if _, err := reader.Sessions(ctx, SessionFilter{}); !errors.Is(err, context.Canceled) {
		t.Errorf("sessions: %v", err)
	}
}

// The index forgets what a fault of the disk cut off a segment.
func TestIndexAfterMend(t *testing.T) {
	t.Parallel()
	d := newTestDisk(t.TempDir())
	p := slowHead()
	p.sync = time.Hour
	r := openTest(t, Config{}, d, p)
	appendAll(t, r, access.Synced, opened("s", "ann", "orders", noon), ask("s", "q1"))
	appendAll(t, r, access.Written, ended("s", "q1"), ask("s", "q2"))
	if s, err := r.Reader().Sessions(t.Context(), SessionFilter{}); err != nil || s[0].Events != 4 {
		t.Fatalf("%+v, %v", s, err)
	}
	d.set(faults["failing fsync"])
	if err := r.Append(t.Context(), access.Synced, ask("s", "lost")); err == nil {
		t.Fatal("appended on a bad disk")
	}
	d.set(nil)
	if err := r.Close(); err != nil { // mends
		t.Fatal(err)
	}
	s, err := r.Reader().Sessions(t.Context(), SessionFilter{})
	if err != nil || s[0].Events != 4 || s[0].Requests != 2 {
		t.Errorf("%+v, %v", s, err)
	}
}
