package record

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// childEnv makes the test binary run as one of the children of crash_test.go.
const childEnv = "RECORD_TEST_CHILD"

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		os.Exit(child(role))
	}
	os.Exit(m.Run())
}

// ask is a request that was allowed, named by its id.
func ask(session, id string) access.Event {
	return access.Event{Session: session, Request: id, Decided: &access.Decided{
		Request: access.Request{ID: id, Session: session,
			Principal: access.Principal{Issuer: "dex", Subject: "s", User: "ann@example.com", Subagent: "agent"},
			Resource:  access.Resource{Name: "orders", Kind: access.Postgres},
			Action:    access.Action{SQL: &access.SQL{Text: "select '<&>' where id = " + id, Command: "SELECT"}}},
		Decision: access.Decision{Effect: access.Allow, Rules: []access.RuleRef{{Policy: "p", Rule: "read"}}, Revision: "r1"},
	}}
}

func row(session, id, value string) access.Event {
	return access.Event{Session: session, Request: id, Rows: &access.Rows{Rows: [][]*string{{&value, nil}}}}
}

// A testDisk is the real file system, with faults where before gives them and
// without the time that an fsync takes.
type testDisk struct {
	folder
	mu     sync.Mutex
	syncs  int // of segments
	writes int
	before func(op operation) outcome
}

// An operation is what is about to be done to a file.
type operation struct {
	kind string // open, write, sync, truncate, rename, remove
	name string
	size int
}

// An outcome is what becomes of it; the zero outcome is that it is done.
type outcome struct {
	err  error
	take int // of a write that fails or comes up short: bytes that are written
	less bool
}

func newTestDisk(dir string) *testDisk { return &testDisk{folder: folder(dir)} }

func (d *testDisk) set(before func(operation) outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before = before
}

func (d *testDisk) ask(op operation) outcome {
	d.mu.Lock()
	before := d.before
	segment := filepath.Ext(op.name) == ".ndjson"
	if op.kind == "sync" && segment {
		d.syncs++
	}
	if op.kind == "write" && segment {
		d.writes++
	}
	d.mu.Unlock()
	if before == nil {
		return outcome{}
	}
	return before(op)
}

func (d *testDisk) counts() (syncs, writes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs, d.writes
}

func (d *testDisk) open(name string, flag int) (file, error) {
	if o := d.ask(operation{kind: "open", name: name}); o.err != nil {
		return nil, o.err
	}
	f, err := d.folder.open(name, flag)
	if err != nil {
		return nil, err
	}
	return &testFile{f, d, name}, nil
}

func (d *testDisk) rename(from, to string) error {
	if o := d.ask(operation{kind: "rename", name: to}); o.err != nil {
		return o.err
	}
	return d.folder.rename(from, to)
}

func (d *testDisk) remove(name string) error {
	if o := d.ask(operation{kind: "remove", name: name}); o.err != nil {
		return o.err
	}
	return d.folder.remove(name)
}

type testFile struct {
	file
	disk *testDisk
	name string
}

func (f *testFile) Write(b []byte) (int, error) {
	o := f.disk.ask(operation{kind: "write", name: f.name, size: len(b)})
	if o.err == nil && !o.less {
		return f.file.Write(b)
	}
	n, err := f.file.Write(b[:min(o.take, len(b))])
	return n, errors.Join(o.err, err)
}

func (f *testFile) Sync() error {
	return f.disk.ask(operation{kind: "sync", name: f.name}).err
}

func (f *testFile) Truncate(size int64) error {
	if o := f.disk.ask(operation{kind: "truncate", name: f.name}); o.err != nil {
		return o.err
	}
	return f.file.Truncate(size)
}

// slowHead writes HEAD at the beginning, at rotation and at the end only.
func slowHead() pace {
	p := usualPace
	p.head = time.Hour
	return p
}

// openTest opens a recorder on d and closes it when the test ends.
func openTest(t testing.TB, cfg Config, d *testDisk, p pace) *Recorder {
	t.Helper()
	cfg.Dir = string(d.folder)
	r, err := open(cfg, d, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func appendAll(t testing.TB, r *Recorder, d access.Durability, evs ...access.Event) {
	t.Helper()
	for _, ev := range evs {
		if err := r.Append(t.Context(), d, ev); err != nil {
			t.Fatal(err)
		}
	}
}

// numbered makes n events with requests r1, r2, … and a time each.
func numbered(n int) []access.Event {
	var evs []access.Event
	for i := 1; i <= n; i++ {
		evs = append(evs, ask("ses", fmt.Sprintf("r%d", i)))
	}
	return evs
}

// read returns every event of a recording.
func read(t testing.TB, dir string) []access.Event {
	t.Helper()
	r, err := OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	var evs []access.Event
	for ev, err := range r.Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		evs = append(evs, ev)
	}
	return evs
}

// names gives each event's request, or the act of one of the recorder's own.
func names(evs []access.Event) []string {
	var out []string
	for _, ev := range evs {
		if ev.Admin != nil {
			out = append(out, ev.Admin.Act)
		} else {
			out = append(out, ev.Request)
		}
	}
	return out
}

func mustNames(t testing.TB, dir string, want ...string) {
	t.Helper()
	if got := names(read(t, dir)); !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
}

func mustVerify(t testing.TB, dir string) Report {
	t.Helper()
	report, err := Verify(dir)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	return report
}

// copyDir copies a recording as it is at this moment.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	copyInto(t, from, to)
	return to
}

func copyInto(t testing.TB, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == headTemp {
			continue // of a recorder at work, and gone at any moment
		}
		writeFile(t, filepath.Join(to, e.Name()), readFile(t, filepath.Join(from, e.Name())))
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
