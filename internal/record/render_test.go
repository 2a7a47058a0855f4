package record

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"chaperone.dev/chaperone/internal/access"
)

var update = flag.Bool("update", false, "write the golden files")

func each(evs ...access.Event) iter.Seq2[access.Event, error] {
	return func(yield func(access.Event, error) bool) {
		for _, ev := range evs {
			if !yield(ev, nil) {
				return
			}
		}
	}
}

func cells(values ...string) []*string {
	row := make([]*string, len(values))
	for i := range values {
		if values[i] != "NULL" {
			row[i] = &values[i]
		}
	}
	return row
}

// sqlSession and httpSession show everything that can be in a recording.
func sqlSession() []access.Event {
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	masked := ask("s1", "req_1")
	masked.Time = at(10)
	masked.Decided.Request.Action.SQL = &access.SQL{Text: "select id, name, ssn\nfrom customers\twhere id < $1",
		Parameters: []access.BoundParameter{{Value: "4"}, {Null: true}, {Value: "AAE=", Binary: true}}}
	masked.Decided.Decision.Obligations.Masks = []access.Mask{{Column: "public.customers.ssn"}, {Detect: []string{"CREDIT_CARD", "API_KEY"}, With: access.Partial}}
	held := ask("s1", "req_3")
	held.Time = at(300)
	held.Decided.Decision = access.Decision{Effect: access.Approve, Rules: []access.RuleRef{{Policy: "p", Rule: "fix"}}}
	drop := deniedByRule("s1", "req_2")
	drop.Time = at(200)
	drop.Decided.Request.Action.SQL = &access.SQL{Text: "drop table orders"}
	drop.Decided.Decision.Reason, drop.Decided.Decision.Message = access.NoRule, "no policy allows DROP TABLE on orders"
	drop.Decided.Decision.Hint, drop.Decided.Decision.Rules = "ask for a rule", nil
	refusal := denied("s1", "req_4")
	refusal.Time = at(400)
	refusal.Denied = &access.Denied{Text: "copy x to stdout", Cause: "COPY is not handled",
		Denial: access.Denial{RequestID: "req_4", Reason: access.Unsupported, Message: "COPY is not supported", Hint: "use SELECT"}}
	end := ended("s1", "req_1")
	end.Ended = &access.Ended{Tag: "SELECT 3", Rows: 3, Bytes: 120, Masked: 3, Duration: 1234567}
	failed := ended("s1", "req_3")
	failed.Ended = &access.Ended{Error: "ERROR: deadlock detected\nHINT: see server log"}
	return []access.Event{
		opened("s1", "ann@example.com", "orders", noon), masked,
		{Session: "s1", Request: "req_1", Executed: &access.Executed{SQL: "select id, name, '***' from customers where id < $1"}},
		{Session: "s1", Request: "req_1", Rows: &access.Rows{Columns: []string{"id", "name", "ssn"},
			Rows: [][]*string{cells("1", "Ann", "***"), cells("2", "NULL", "***")}}},
		{Session: "s1", Request: "req_1", Rows: &access.Rows{Rows: [][]*string{cells("3", "Bartholomäus", "***")}, Omitted: 7}},
		{Session: "s1", Request: "req_1", Notice: &access.Notice{Severity: "NOTICE", Text: "table is old"}},
		end, drop, held,
		{Session: "s1", Request: "req_3", Approval: &access.ApprovalEvent{ID: "req_3", State: access.Pending}},
		{Session: "s1", Request: "req_3", Approval: &access.ApprovalEvent{ID: "req_3", State: access.Granted,
			Answer: &access.Answer{Reviewer: access.Principal{User: "bob@example.com"}, Grant: true, Comment: "go ahead"}}},
		{Session: "s1", Request: "req_3", Executed: &access.Executed{SQL: "select '<&>' where id = req_3", Approval: "req_3"}},
		failed, refusal, closed("s1", at(500)),
	}
}

func httpSession() []access.Event {
	call := ask("s2", "req_5")
	call.Time = noon
	call.Decided.Request.Action = access.Action{HTTP: &access.HTTPCall{Method: "POST", Host: "billing", Path: "/customers/1",
		Query: map[string][]string{"x": {"a b"}}, BodyState: access.BodyWhole, BodyBytes: 9,
		Body: map[string]any{"amount": json.Number("12.50"), "to": []any{"a", nil}}}}
	unread := ask("s2", "req_6")
	unread.Time = noon
	unread.Decided.Request.Action = access.Action{HTTP: &access.HTTPCall{Method: "PUT", Host: "billing", Path: "/x",
		BodyState: access.BodyUnread, BodyBytes: 70}}
	return []access.Event{
		call,
		{Session: "s2", Request: "req_5", Executed: &access.Executed{HTTP: &access.HTTPCall{Method: "POST", Host: "billing.internal", Path: "/customers/1"}}},
		{Session: "s2", Request: "req_5", Body: &access.BodyChunk{Status: 200, Headers: map[string][]string{"content-type": {"application/json"}}, Text: "{\"ssn\":\"***\"}\n"}},
		{Session: "s2", Request: "req_5", Body: &access.BodyChunk{Bytes: []byte{1, 2, 3}, Omitted: 4096}},
		{Session: "s2", Request: "req_5", Ended: &access.Ended{Tag: "200", Bytes: 13, Duration: time.Second}},
		unread,
		{Time: noon, Session: "s2", Admin: &access.Administrative{Act: "session.kill", On: "s2", Actor: access.Principal{Subject: "op"}}},
	}
}

func TestRenderGolden(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		evs  []access.Event
		opts RenderOptions
	}{
		"sql":        {sqlSession(), RenderOptions{}},
		"sql-colour": {sqlSession(), RenderOptions{Colour: true}},
		"http":       {httpSession(), RenderOptions{}},
		"ssh":        {sshSession(), RenderOptions{}},
		"ssh-screen": {sshSession(), RenderOptions{Screens: true}},
	} {
		var b bytes.Buffer
		if err := RenderEvents(t.Context(), &b, each(c.evs...), c.opts); err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want := readFile(t, golden); !bytes.Equal(b.Bytes(), want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, b.Bytes(), want)
		}
	}
}

const nasty = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u009b\u202eevil\u2066\u200b\u2028\ufeff\U000e0041\x7f\x00\b\xff\ufe0f\n" +
	"  allow  p/read\n12:00:00.000 session closed: fine"

// Everything foreign is inert: nothing in it reaches the terminal that could
// act on it, and no line of it passes for one of chaperone's.
func TestRenderIsInert(t *testing.T) {
	t.Parallel()
	evs := slices.Concat(sqlSession(), httpSession(), sshSession())
	b, err := json.Marshal(evs)
	if err != nil {
		t.Fatal(err)
	}
	// Put the nasty text into every string that is not a keyword.
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	b, err = json.Marshal(poison("", tree))
	if err != nil {
		t.Fatal(err)
	}
	var poisoned []access.Event
	if err := json.Unmarshal(b, &poisoned); err != nil {
		t.Fatal(err)
	}
	for i := range poisoned { // what JSON cannot carry
		if s := poisoned[i].Executed; s != nil {
			s.SQL += nasty
		}
	}
	var out bytes.Buffer
	if err := RenderEvents(t.Context(), &out, each(poisoned...), RenderOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "evil"); n < 30 {
		t.Fatalf("only %d pieces were poisoned:\n%s", n, out.String())
	}
	for i, r := range out.String() {
		if r != '\n' && !unicode.IsPrint(r) || r == '\ufe0f' {
			t.Fatalf("%q reached the terminal at %q", r, out.String()[max(0, i-40):i])
		}
	}
	for l := range strings.Lines(out.String()) {
		if strings.HasPrefix(l, "  allow  p/read\n") || strings.HasPrefix(l, "12:00:00.000 session closed: fine") {
			t.Errorf("a forged line: %q", l)
		}
	}
}

// poison appends the nasty text to every string of a JSON tree, except where
// only certain words may stand.
func poison(name string, tree any) any {
	switch v := tree.(type) {
	case map[string]any:
		for k := range v {
			v[k] = poison(k, v[k])
		}
	case []any:
		for i := range v {
			v[i] = poison(name, v[i])
		}
	case string:
		switch name {
		case "effect", "time", "opened", "deadline", "issued_at", "expires_at", "bytes":
			return v
		}
		return v + nasty
	}
	return tree
}

func TestVisible(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain ä 漢 ✓ \\n":    "plain ä 漢 ✓ \\n",
		"a\nb\tc\rd":         `a\nb\tc\rd`,
		"\x1b[0m\x00\x7f":    `\x1b[0m\x00\x7f`,
		"\u009b\u202e\u00a0": `\u009b\u202e\u00a0`,
		"\U000e0041":         `\U000e0041`,
		"\xff\xc3":           `\xff\xc3`,
		"\ufffd":             "\ufffd",
		"\u3164\u034f\ufe0f": `\u3164\u034f\ufe0f`,
		"e\u0301":            "e\u0301",
		"":                   "",
	} {
		if got := Visible(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestRenderPauses(t *testing.T) {
	t.Parallel()
	evs := []access.Event{closed("s", noon), closed("s", noon.Add(time.Second)), closed("s", noon.Add(time.Hour)), closed("s", noon)}
	for _, c := range []struct {
		speed float64
		limit time.Duration
		want  time.Duration
	}{{0, 0, 0}, {1, 0, 4 * time.Second}, {2, 0, 3500 * time.Millisecond}, {1e6, 0, time.Microsecond + 3599*time.Microsecond},
		{1, 10 * time.Second, 11 * time.Second}, {2, 24 * time.Hour, 30 * time.Minute}, {1, 100 * time.Millisecond, 200 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			if err := RenderEvents(t.Context(), &bytes.Buffer{}, each(evs...), RenderOptions{Speed: c.speed, IdleLimit: c.limit}); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(start); got != c.want {
				t.Errorf("speed %v took %v, want %v", c.speed, got, c.want)
			}
		})
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestRenderStops(t *testing.T) {
	t.Parallel()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := RenderEvents(gone, &bytes.Buffer{}, each(closed("s", noon)), RenderOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	if err := RenderEvents(t.Context(), brokenPipe{}, each(closed("s", noon)), RenderOptions{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("broken pipe: %v", err)
	}
	bad := func(yield func(access.Event, error) bool) { yield(access.Event{}, ErrNoSession) }
	if err := RenderEvents(t.Context(), &bytes.Buffer{}, bad, RenderOptions{}); !errors.Is(err, ErrNoSession) {
		t.Errorf("failing events: %v", err)
	}
}
