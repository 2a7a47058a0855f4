package record

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// visitable is a closed recording with decisions among rows.
func visitable(t *testing.T) (dir string, between time.Time) {
	t.Helper()
	d := newTestDisk(t.TempDir())
	at := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { at = at.Add(time.Second); return at }
	r := openTest(t, Config{SegmentBytes: 1500, Replica: "one", Clock: clock}, d, slowHead())
	for _, id := range []string{"r1", "r2", "r3", "r4"} {
		if id == "r3" {
			between = at
		}
		appendAll(t, r, access.Synced, ask("ses", id), row("ses", id, `looks like "decided":{} and is none`),
			access.Event{Request: id, Denied: &access.Denied{Denial: access.Denial{RequestID: id}}})
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return string(d.folder), between
}

func visit(t *testing.T, dir string, v Visit) (seen []string, err error) {
	t.Helper()
	v.Event = func(ev access.Event) error {
		seen = append(seen, ev.Type()+" "+ev.Request)
		return nil
	}
	_, err = VerifyEach(t.Context(), dir, v)
	return seen, err
}

func TestVerifyEachShowsWhatIsAskedFor(t *testing.T) {
	t.Parallel()
	dir, between := visitable(t)
	for _, tc := range []struct {
		name string
		v    Visit
		want string
	}{
		{"one type", Visit{Types: []string{"decided"}}, "decided r1,decided r2,decided r3,decided r4"},
		{"two types", Visit{Types: []string{"denied", "decided"}}, "decided r1,denied r1,decided r2,denied r2,decided r3,denied r3,decided r4,denied r4"},
		{"since", Visit{Types: []string{"decided"}, Since: between.Add(time.Millisecond)}, "decided r3,decided r4"},
		{"none", Visit{}, ""},
	} {
		seen, err := visit(t, dir, tc.v)
		if err != nil || strings.Join(seen, ",") != tc.want {
			t.Errorf("%s: got %v, %v", tc.name, seen, err)
		}
	}
}

// A visit ends with an error when anything at all was changed, and shows nothing
// from the change on.
func TestVerifyEachVerifies(t *testing.T) {
	t.Parallel()
	dir, _ := visitable(t)
	ordinals, err := segments(dir)
	if err != nil || len(ordinals) < 2 {
		t.Fatalf("segments %v, %v", ordinals, err)
	}
	last := filepath.Join(dir, segmentName(ordinals[len(ordinals)-1]))
	b, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.Index(b, '&')
	if at < 0 {
		t.Fatal("the last segment has no decision")
	}
	b[at] = '%'
	if err := os.WriteFile(last, b, 0o600); err != nil {
		t.Fatal(err)
	}
	seen, err := visit(t, dir, Visit{Types: []string{"decided"}})
	var d *Damage
	if !errors.As(err, &d) || len(seen) >= 4 {
		t.Errorf("saw %v, %v", seen, err)
	}
}

func TestVerifyEachEnds(t *testing.T) {
	t.Parallel()
	dir, _ := visitable(t)
	mine := errors.New("enough")
	if _, err := VerifyEach(t.Context(), dir, Visit{Types: []string{"decided"}, Event: func(access.Event) error { return mine }}); !errors.Is(err, mine) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := VerifyEach(ctx, dir, Visit{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := VerifyEach(t.Context(), t.TempDir(), Visit{}); err == nil {
		t.Error("an empty folder passes")
	}
}
