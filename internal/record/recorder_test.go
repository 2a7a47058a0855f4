package record

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chaperone.dev/chaperone/internal/access"
)

func TestAppendAndReadBack(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	now := time.Date(2026, 1, 2, 3, 4, 5, 678, time.FixedZone("x", 3600))
	r, err := Open(Config{Dir: dir, Replica: "one", Clock: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	call := access.Event{Session: "ses", Request: "r2", Executed: &access.Executed{HTTP: &access.HTTPCall{
		Method: "POST", Path: "/\u2028<script>", Body: map[string]any{"n": json.Number("12345678901234567890.5")},
	}}}
	stamped := row("ses", "r1", "a\x00b")
	stamped.Time = now.Add(-time.Hour)
	if err := r.Append(t.Context(), access.Synced, ask("ses", "r1"), stamped); err != nil {
		t.Fatal(err)
	}
	appendAll(t, r, access.Written, call)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	want := []access.Event{ask("ses", "r1"), stamped, call}
	for i := range want {
		want[i].Seq = uint64(i + 1)
		want[i].Time = now.UTC()
	}
	want[1].Time = now.Add(-time.Hour).UTC()
	if got := read(t, dir); !reflect.DeepEqual(got, want) {
		t.Errorf("read back\n%+v\nwant\n%+v", got, want)
	}
	report := mustVerify(t, dir)
	seq, hash := r.Checkpoint()
	if report.Last != 3 || report.First != 1 || report.Events() != 3 || report.Head != 3 || seq != 3 || hash != report.Hash {
		t.Errorf("report %+v, checkpoint %d %v", report, seq, hash)
	}
	text := string(readFile(t, filepath.Join(dir, segmentName(1))))
	if !strings.Contains(text, `"replica":"one"`) || !strings.Contains(text, `select '<&>'`) {
		t.Errorf("unexpected segment:\n%s", text)
	}
}

func TestNothingIsReadableByOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, r, access.Synced, numbered(2)...)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", headName, segmentName(1)} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if perm := info.Mode().Perm(); perm&0o077 != 0 {
			t.Errorf("%q has mode %v", name, perm)
		}
	}
}

func TestOneRecorderPerFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("second recorder: %v, want ErrLocked", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

func TestReopenGoesOn(t *testing.T) {
	t.Parallel()
	d := newTestDisk(t.TempDir())
	for i, replica := range []string{"a", "a", "b", "b"} {
		r := openTest(t, Config{Replica: replica}, d, usualPace)
		appendAll(t, r, access.Synced, ask("ses", fmt.Sprintf("r%d", i)))
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, string(d.folder))
	}
	mustNames(t, string(d.folder), "r0", "r1", "r2", "r3")
	if report := mustVerify(t, string(d.folder)); report.Segments != 2 {
		t.Errorf("%d segments, want one for each replica name", report.Segments)
	}
}

func TestRotationBySize(t *testing.T) {
	t.Parallel()
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{SegmentBytes: 1000}, d, slowHead())
	appendAll(t, r, access.Written, numbered(40)...)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	report := mustVerify(t, string(d.folder))
	if report.Last != 40 || report.Segments < 10 {
		t.Errorf("report %+v", report)
	}
	if got := len(read(t, string(d.folder))); got != 40 {
		t.Errorf("%d events", got)
	}
}

func TestAppendRefuses(t *testing.T) {
	t.Parallel()
	r := openTest(t, Config{}, newTestDisk(t.TempDir()), usualPace)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	big := row("ses", "r", strings.Repeat("x", MaxEventBytes))
	half := row("ses", "r", strings.Repeat("x", MaxEventBytes*9/10))
	many := []access.Event{half, half, half, half, half, half, half, half, half, half}
	for name, c := range map[string]struct {
		ctx  context.Context
		evs  []access.Event
		want error
	}{
		"no payload":              {t.Context(), []access.Event{{Session: "s"}}, nil},
		"an event over the bound": {t.Context(), []access.Event{ask("s", "r"), big}, ErrTooLarge},
		"too much in one call":    {t.Context(), many, ErrTooLarge},
		"an ended context":        {ended, []access.Event{ask("s", "r")}, context.Canceled},
		"a value that JSON lacks": {t.Context(), []access.Event{{Executed: &access.Executed{HTTP: &access.HTTPCall{Body: func() {}}}}}, nil},
		"the recorder's own acts": {t.Context(), []access.Event{{Admin: &access.Administrative{Act: "recording.prune"}}}, nil},
	} {
		for _, level := range []access.Durability{access.Synced, access.Written} {
			err := r.Append(c.ctx, level, c.evs...)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
	}
	if err := r.Append(t.Context(), access.Synced, many[:8]...); err != nil {
		t.Errorf("just within the bounds: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Append(t.Context(), access.Synced, ask("s", "r")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after Close: %v, want ErrUnavailable", err)
	}
	if report := mustVerify(t, r.cfg.Dir); report.Last != 8 {
		t.Errorf("%d events recorded, want the 8 that were not refused", report.Last)
	}
}

func TestOpenRefusesConfig(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		"no folder":          {},
		"negative size":      {Dir: t.TempDir(), SegmentBytes: -1},
		"negative retention": {Dir: t.TempDir(), Retention: -1},
		"long replica name":  {Dir: t.TempDir(), Replica: strings.Repeat("x", 1000)},
		"a file":             {Dir: os.Args[0]},
	} {
		if r, err := Open(cfg); err == nil {
			t.Errorf("%s: accepted", name)
			_ = r.Close()
		}
	}
}

// Many goroutines append at both levels while one reads and one verifies.
func TestConcurrentAppends(t *testing.T) {
	t.Parallel()
	d := newTestDisk(t.TempDir())
	reg := prometheus.NewPedanticRegistry()
	r := openTest(t, Config{SegmentBytes: 8 << 10, Registerer: reg}, d, usualPace)
	const workers, each = 16, 50
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			session := fmt.Sprintf("ses%d", w)
			for i := range each {
				level := access.Durability(i % 2)
				id := fmt.Sprintf("%s-%d", session, i)
				if err := r.Append(t.Context(), level, ask(session, id), row(session, id, "x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	appended := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for more := true; more; {
			select {
			case <-appended:
				more = false
			default:
			}
			if _, err := Verify(string(d.folder)); err != nil {
				t.Errorf("verify beside the recorder: %v", err)
			}
			if _, err := r.Reader().Sessions(t.Context(), SessionFilter{}); err != nil {
				t.Errorf("sessions beside the recorder: %v", err)
			}
		}
	})
	wg.Wait()
	close(appended)
	readers.Wait()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	evs := read(t, string(d.folder))
	for i := 0; i < len(evs); i += 2 {
		ev := evs[i]
		if want := fmt.Sprintf("%s-%d", ev.Session, next[ev.Session]); ev.Request != want || evs[i+1].Request != want || evs[i+1].Rows == nil {
			t.Fatalf("event %d is %s then %s, want %s twice", ev.Seq, ev.Request, evs[i+1].Request, want)
		}
		next[ev.Session]++
	}
	if report := mustVerify(t, string(d.folder)); report.Events() != workers*each*2 {
		t.Errorf("%d events", report.Events())
	}
}

// The names that a line adds must never be taken by an event's own.
func TestLineNamesAreFree(t *testing.T) {
	t.Parallel()
	typ := reflect.TypeFor[access.Event]()
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		switch strings.ToLower(name) {
		case "prev", "synced", "crc", "format":
			t.Errorf("access.Event has a member %q, which every line of a recording needs", name)
		}
	}
}

func TestMetricsCanBeRegisteredAgain(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	dir := t.TempDir()
	for range 2 {
		r, err := Open(Config{Dir: dir, Registerer: reg})
		if err != nil {
			t.Fatal(err)
		}
		appendAll(t, r, access.Synced, numbered(1)...)
		got, err := reg.Gather()
		if err != nil || len(got) != 7 {
			t.Errorf("%d metrics, %v", len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
