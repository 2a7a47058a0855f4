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

// aged makes a recorder with a segment for each day: two events a day, days
// 1 to n. The clock then says day n+1.
func aged(t *testing.T, n int) (r *Recorder, dir string, day func(int) time.Time) {
	t.Helper()
	start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	day = func(i int) time.Time { return start.AddDate(0, 0, i) }
	now := day(1)
	d := newTestDisk(t.TempDir())
	r = openTest(t, Config{SegmentBytes: 300, Retention: 10 * 24 * time.Hour, Clock: func() time.Time { return now }}, d, slowHead())
	for i := 1; i <= n; i++ {
		now = day(i)
		if err := r.Append(t.Context(), access.Synced, ask("ses", "a"), ask("ses", "b")); err != nil {
			t.Fatal(err)
		}
	}
	now = day(n + 1)
	return r, string(d.folder), day
}

func TestPrune(t *testing.T) {
	t.Parallel()
	r, dir, day := aged(t, 20)
	p, err := r.Prune(t.Context(), day(13))
	if err != nil || p.Segments != 2 || p.Events != 4 || p.First != 1 || p.Last != 4 {
		t.Errorf("pruned %+v, %v; want days 1 and 2", p, err)
	}
	report := mustVerify(t, dir)
	if report.First != 5 || len(report.Removed) != 1 {
		t.Fatalf("report %+v", report)
	}
	if got := report.Removed[0]; got.First != 1 || got.Last != 4 || got.Segments != 2 || !got.Newest.Equal(day(2)) {
		t.Errorf("removal %+v", got)
	}
	if p, err := r.Prune(t.Context(), day(13)); err != nil || p.Segments != 0 {
		t.Errorf("pruned %+v again, %v", p, err)
	}
	// The tombstone of the first removal goes with a later one.
	p, err = r.Prune(t.Context(), day(40))
	if err != nil || p.First != 5 || p.Last != 41 {
		t.Errorf("pruned %+v, %v", p, err)
	}
	if err := r.Append(t.Context(), access.Synced, ask("ses", "after")); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	report = mustVerify(t, dir)
	if report.First != 42 || len(report.Removed) != 1 || report.Removed[0].Last != 41 {
		t.Errorf("report %+v", report)
	}
	r, err = Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	mustVerify(t, dir)
}

func TestPruneWithoutRetention(t *testing.T) {
	t.Parallel()
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{SegmentBytes: 300}, d, slowHead())
	appendAll(t, r, access.Synced, numbered(5)...)
	if p, err := r.Prune(t.Context(), time.Now().AddDate(100, 0, 0)); err != nil || p.Segments != 0 {
		t.Errorf("pruned %+v, %v", p, err)
	}
}

// A gateway that records little still removes what is too old: a segment is
// ended by its age too.
func TestPruneEndsIdleSegment(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{Retention: time.Hour, Clock: func() time.Time { return now }}, d, slowHead())
	appendAll(t, r, access.Synced, numbered(3)...)
	if p, err := r.Prune(t.Context(), now.Add(time.Minute)); err != nil || p.Segments != 0 {
		t.Errorf("pruned %+v, %v", p, err)
	}
	if p, err := r.Prune(t.Context(), now.Add(2*time.Hour)); err != nil || p.Last != 3 {
		t.Errorf("pruned %+v, %v", p, err)
	}
	if report := mustVerify(t, string(d.folder)); report.First != 4 {
		t.Errorf("report %+v", report)
	}
}

// Whatever goes beyond the schedule is deletion.
func TestRemovalMustBeAccountedFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		do   func(t *testing.T, r *Recorder, dir string, day func(int) time.Time)
		ok   bool
	}{
		{"pruned on schedule", func(t *testing.T, r *Recorder, dir string, day func(int) time.Time) {}, true},
		{"stopped between the tombstone and the removal", func(t *testing.T, r *Recorder, dir string, day func(int) time.Time) {
			bury(t, r, dir, tombstoneOf(t, r, dir, 3, 5), day(16), 1)
		}, true},
		{"one segment more", func(t *testing.T, r *Recorder, dir string, day func(int) time.Time) {
			remove(t, dir, segmentName(3))
		}, false},
		{"a tombstone before its time", func(t *testing.T, r *Recorder, dir string, day func(int) time.Time) {
			bury(t, r, dir, tombstoneOf(t, r, dir, 3, 5), day(14), 3)
		}, false},
		{"a tombstone of other events", func(t *testing.T, r *Recorder, dir string, day func(int) time.Time) {
			stone := tombstoneOf(t, r, dir, 3, 5)
			stone.Segments[2].Hash[0] ^= 1
			bury(t, r, dir, stone, day(16), 3)
		}, false},
		{"files renamed", func(t *testing.T, r *Recorder, dir string, day func(int) time.Time) {
			ordinals, err := segments(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range ordinals {
				if err := os.Rename(filepath.Join(dir, segmentName(n)), filepath.Join(dir, segmentName(n-2))); err != nil {
					t.Fatal(err)
				}
			}
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, dir, day := aged(t, 12)
			if p, err := r.Prune(t.Context(), day(13)); err != nil || p.Segments != 2 {
				t.Fatalf("%+v, %v", p, err)
			}
			c.do(t, r, dir, day)
			_, err := Verify(dir)
			var d *Damage
			want := Deleted
			if c.name == "files renamed" {
				want = Reordered
			}
			if c.ok != (err == nil) || !c.ok && (!errors.As(err, &d) || d.What != want || d.Seq != 1) {
				t.Errorf("verify: %v", err)
			}
		})
	}
}

// tombstoneOf makes the tombstone of segments first to last.
func tombstoneOf(t *testing.T, r *Recorder, dir string, first, last uint64) tombstone {
	t.Helper()
	w := &walk{dir: dir}
	stone := tombstone{Retention: r.cfg.Retention.String()}
	for ordinal := first; ordinal <= last; ordinal++ {
		b, err := examine(w, ordinal)
		if err != nil {
			t.Fatal(err)
		}
		stone.Segments = append(stone.Segments, b)
	}
	return stone
}

// bury records a tombstone, as Prune would at a given time, and removes the
// first n of its segments.
func bury(t *testing.T, r *Recorder, dir string, stone tombstone, at time.Time, n int) {
	t.Helper()
	ev := r.own(pruneAct, "x", stone)
	ev.Time = at
	if err := r.append(context.Background(), access.Synced, ev); err != nil {
		t.Fatal(err)
	}
	for _, b := range stone.Segments[:n] {
		remove(t, dir, segmentName(b.Segment))
	}
}

// A damaged segment is evidence; it and what follows stay.
func TestPruneKeepsDamage(t *testing.T) {
	t.Parallel()
	r, dir, day := aged(t, 12)
	forge(t, dir, 3, replace(2, "select", "delete"))
	p, err := r.Prune(t.Context(), day(40))
	var d *Damage
	if !errors.As(err, &d) || d.File != segmentName(3) || p.Segments != 2 {
		t.Errorf("pruned %+v, %v", p, err)
	}
	if ordinals, err := segments(dir); err != nil || !slices.Contains(ordinals, 3) || !slices.Contains(ordinals, 4) {
		t.Errorf("left %v, %v", ordinals, err)
	}
}

// A clock that jumped does not make a young event old: its own time counts, not
// the place where it stands.
func TestPruneKeepsYoungEvents(t *testing.T) {
	t.Parallel()
	now := noon.AddDate(0, 0, 9)
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{SegmentBytes: 300, Retention: 24 * time.Hour, Clock: func() time.Time { return now }}, d, slowHead())
	appendAll(t, r, access.Synced, ask("ses", "young"))
	now = noon // an hour's jump would do
	appendAll(t, r, access.Synced, ask("ses", "old"), ask("ses", "old"))
	if p, err := r.Prune(t.Context(), noon.AddDate(0, 0, 9)); err != nil || p.Segments != 0 {
		t.Errorf("pruned %+v, %v", p, err)
	}
	if p, err := r.Prune(t.Context(), noon.AddDate(0, 0, 11)); err != nil || p.Segments < 2 {
		t.Errorf("pruned %+v, %v", p, err)
	}
	mustVerify(t, string(d.folder))
}

// Torn ends are recordings too and go when their time has come.
func TestPruneTornEnds(t *testing.T) {
	t.Parallel()
	r, dir, day := aged(t, 1)
	for name, at := range map[string]time.Time{"old": day(1), "young": day(12)} {
		name = filepath.Join(dir, segmentName(1)+"."+name+tornEnd)
		writeFile(t, name, []byte("x"))
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := r.Prune(t.Context(), day(13)); err != nil || p.Torn != 1 {
		t.Errorf("pruned %+v, %v", p, err)
	}
	text := dirText(t, dir)
	if strings.Contains(text, "old.torn") || !strings.Contains(text, "young.torn") {
		t.Errorf("left\n%s", text)
	}
}

func TestPruneBesideReaders(t *testing.T) {
	t.Parallel()
	r, _, day := aged(t, 12)
	reader := r.Reader()
	if s, err := reader.Sessions(t.Context(), SessionFilter{}); err != nil || len(s) != 1 || s[0].Events != 24 {
		t.Fatalf("%+v, %v", s, err)
	}
	n := 0
	for _, err := range reader.Session(t.Context(), "ses") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 1 {
			if _, err := r.Prune(t.Context(), day(16)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n >= 24 || n < 10 {
		t.Errorf("%d events while they were being removed", n)
	}
	if s, err := reader.Sessions(t.Context(), SessionFilter{}); err != nil || len(s) != 1 || s[0].Events >= 24 {
		t.Errorf("%+v, %v", s, err)
	}
	if len(reader.index.segments) > 9 {
		t.Errorf("the index keeps %d segments", len(reader.index.segments))
	}
}
