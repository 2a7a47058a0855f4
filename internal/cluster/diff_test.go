package cluster

import (
	"fmt"
	"strings"
	"testing"
)

func parsed(t *testing.T, text string) any {
	t.Helper()
	if text == "" {
		return nothing{}
	}
	var v any
	if err := decode([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestDifferences: every place that changes is there, once, and shows what may
// be shown.
func TestDifferences(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ before, after, shownBefore, shownAfter, want string }{
		"nothing":         {before: `{"a":1}`, after: `{"a":1}`},
		"a value":         {before: `{"spec":{"replicas":1}}`, after: `{"spec":{"replicas":3}}`, want: `spec.replicas: 1 -> 3`},
		"large numbers":   {before: `{"a":9007199254740993}`, after: `{"a":9007199254740992}`, want: `a: 9007199254740993 -> 9007199254740992`},
		"added, removed":  {before: `{"a":{"b":1}}`, after: `{"a":{"c":"x"}}`, want: "a.b: 1 -> \na.c:  -> \"x\""},
		"null is a value": {before: `{"a":null}`, after: `{}`, want: "a: null -> "},
		"another type":    {before: `{"a":{"b":1}}`, after: `{"a":[1]}`, want: `a: {"b":1} -> [1]`},
		"a new object":    {after: `{"a":{"b":[{"name":"x","v":1}]},"c":{}}`, want: "a.b[x].name:  -> \"x\"\na.b[x].v:  -> 1\nc:  -> {}"},
		"by name": {before: `{"c":[{"name":"a","image":"1"},{"name":"b","image":"1"}]}`, after: `{"c":[{"name":"b","image":"2"}]}`,
			want: "c[b].image: \"1\" -> \"2\"\nc[a].image: \"1\" -> \nc[a].name: \"a\" -> "},
		"another order": {before: `{"c":[{"name":"a"},{"name":"b"}]}`, after: `{"c":[{"name":"b"},{"name":"a"}]}`, want: "c: in the order a, b -> in the order b, a"},
		"by position":   {before: `{"c":[1,2]}`, after: `{"c":[1,3,4]}`, want: "c[1]: 2 -> 3\nc[2]:  -> 4"},
		"a name twice":  {before: `{"c":[{"name":"a"},{"name":"a"}]}`, after: `{"c":[{"name":"a"},{"name":"a","x":1}]}`, want: "c[1].x:  -> 1"},
		"a strange key": {before: `{}`, after: `{"a.b":"1"}`, want: `["a.b"]:  -> "1"`},
		"bookkeeping": {before: `{"metadata":{"resourceVersion":"1","generation":1}}`, after: `{"metadata":{"resourceVersion":"2","generation":2,
			"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"x","note":"y"}}}`, want: `metadata.annotations.note:  -> "y"`},
		"masked to the same": {before: `{"data":{"p":"b25l"}}`, after: `{"data":{"p":"dHdv"}}`, shownBefore: `{"data":{"p":"***"}}`, shownAfter: `{"data":{"p":"***"}}`,
			want: `data.p: "***" -> "***" (masked)`},
		"a new masked value": {before: `{}`, after: `{"data":{"p":"dHdv"}}`, shownAfter: `{"data":{"p":"***"}}`, want: `data.p:  -> "***" (masked)`},
		"masked as a whole":  {before: `{}`, after: `{"a":{"b":{"c":"dHdv"}}}`, shownAfter: `{"a":"***"}`, want: `a.b.c:  -> "***" (masked)`},
	} {
		before, after := version{parsed(t, c.before), parsed(t, c.before)}, version{parsed(t, c.after), parsed(t, c.after)}
		if c.shownBefore != "" {
			before.shown = parsed(t, c.shownBefore)
		}
		if c.shownAfter != "" {
			after.shown = parsed(t, c.shownAfter)
		}
		changes, more := differences(before, after)
		var lines []string
		for _, one := range changes {
			line := fmt.Sprintf("%s: %s -> %s", one.Path, one.Before, one.After)
			if one.Masked {
				line += " (masked)"
			}
			lines = append(lines, line)
		}
		if got := strings.Join(lines, "\n"); got != c.want || more != 0 {
			t.Errorf("%s: %d more,\n%s\nwant\n%s", name, more, got, c.want)
		}
	}
}

// TestDifferencesAreBounded: what is too much is counted, and long values are
// cut, but not so that a change goes unseen.
func TestDifferencesAreBounded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 5000)
	after := map[string]any{}
	for i := range 300 {
		after[fmt.Sprintf("k%03d", i)] = long
	}
	changes, more := differences(absent, version{after, after})
	if len(changes) != maxChanges || more != 300-maxChanges || len(changes[0].After) > maxValue+30 {
		t.Errorf("%d changes, %d more, %d bytes", len(changes), more, len(changes[0].After))
	}
	changes, _ = differences(version{long + "a", long + "a"}, version{long + "b", long + "b"})
	if len(changes) != 1 {
		t.Errorf("a change behind the cut: %v", changes)
	}
}
