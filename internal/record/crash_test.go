package record

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// crashed makes a recording of n events as a killed process leaves it: HEAD
// has not followed.
func crashed(t testing.TB, n int) string {
	t.Helper()
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{}, d, slowHead())
	evs := numbered(n)
	for i := n - 3; i < n; i++ {
		evs[i] = row("ses", evs[i].Request, "x")
	}
	if err := r.Append(t.Context(), access.Synced, evs[:n-3]...); err != nil {
		t.Fatal(err)
	}
	if err := r.Append(t.Context(), access.Written, evs[n-3:]...); err != nil {
		t.Fatal(err)
	}
	dir := copyDir(t, string(d.folder))
	if h, ok, err := readHead(dir); err != nil || !ok || h.Seq != 0 {
		t.Fatalf("HEAD %+v, %v, %v", h, ok, err)
	}
	return dir
}

// lineStarts are the offsets at which lines begin, and the end.
func lineStarts(b []byte) []int {
	starts := []int{0}
	for i, c := range b {
		if c == '\n' {
			starts = append(starts, i+1)
		}
	}
	return starts
}

// Whatever a crash left of the last lines, everything before is kept, and what
// was cut is kept aside and told.
func TestTornEnds(t *testing.T) {
	t.Parallel()
	const n = 6
	from := crashed(t, n)
	whole := readFile(t, filepath.Join(from, segmentName(1)))
	starts := lineStarts(whole)
	parent := t.TempDir()
	for size := starts[n-3+1]; size <= len(whole); size++ {
		dir := filepath.Join(parent, "recording")
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
			t.Fatal(err)
		}
		copyInto(t, from, dir)
		writeFile(t, filepath.Join(dir, segmentName(1)), whole[:size])
		lines := bytes.Count(whole[:size], []byte("\n"))
		torn := whole[starts[lines]:size]
		if report := mustVerify(t, dir); report.Torn != int64(len(torn)) || report.Last != uint64(lines-1) {
			t.Fatalf("cut to %d bytes: report %+v", size, report)
		}
		r, err := open(Config{Dir: dir}, newTestDisk(dir), usualPace)
		if err != nil {
			t.Fatalf("cut to %d bytes: %v", size, err)
		}
		appendAll(t, r, access.Synced, ask("ses", "after"))
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		want := names(numbered(lines - 1))
		if len(torn) > 0 {
			want = append(want, "recording.cut")
			kept := readFile(t, filepath.Join(dir, fmt.Sprintf("%s.%d.torn", segmentName(1), starts[lines])))
			if !bytes.Equal(kept, torn) {
				t.Errorf("cut to %d bytes: kept %q, want %q", size, kept, torn)
			}
		}
		mustNames(t, dir, append(want, "after")...)
		if report := mustVerify(t, dir); report.Torn != 0 {
			t.Errorf("report %+v", report)
		}
	}
}

// A crash while a segment is begun leaves it without a whole header.
func TestTornHeader(t *testing.T) {
	t.Parallel()
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{SegmentBytes: 1500}, d, slowHead())
	appendAll(t, r, access.Synced, numbered(4)...)
	from := copyDir(t, string(d.folder))
	name := segmentName(3)
	line, _, err := sealed(header{Format: formatName, Segment: 3, Start: 5})
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, len(line) / 2, len(line)} {
		dir := t.TempDir()
		copyInto(t, from, dir)
		writeFile(t, filepath.Join(dir, name), line[:size])
		if report := mustVerify(t, dir); report.Last != 4 || report.Torn != int64(size) {
			t.Errorf("report %+v", report)
		}
		r, err := open(Config{Dir: dir, SegmentBytes: 1500}, newTestDisk(dir), usualPace)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if kept := readFile(t, filepath.Join(dir, name+".0.torn")); !bytes.Equal(kept, line[:size]) {
			t.Errorf("kept %q", kept)
		}
		mustVerify(t, dir)
		mustNames(t, dir, "r1", "r2", "r3", "r4", "recording.cut")
	}
}

// A power cut may leave a hole where the last writes were; what was not known
// to be on disk is cut from there.
func TestHoleInUnsyncedEnd(t *testing.T) {
	t.Parallel()
	dir := crashed(t, 6)
	name := filepath.Join(dir, segmentName(1))
	b := readFile(t, name)
	starts := lineStarts(b)
	clear(b[starts[4]+10 : starts[5]+10]) // in events 4 and 5, of the last write
	writeFile(t, name, b)
	r, err := open(Config{Dir: dir}, newTestDisk(dir), usualPace)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	mustNames(t, dir, "r1", "r2", "r3", "recording.cut")
	mustVerify(t, dir)
}

// What was once on disk is not cut away: damage there needs a person.
func TestOpenRefusesDamage(t *testing.T) {
	t.Parallel()
	lagging := crashed(t, 6)
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{SegmentBytes: 1200}, d, slowHead())
	appendAll(t, r, access.Synced, numbered(6)...)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	closed := string(d.folder)
	headerLast := headerLast(t)
	edit := func(segment uint64, change func(b []byte, starts []int) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			name := filepath.Join(dir, segmentName(segment))
			b := readFile(t, name)
			writeFile(t, name, change(b, lineStarts(b)))
		}
	}
	flip := func(segment uint64, line int) func(t *testing.T, dir string) {
		return edit(segment, func(b []byte, starts []int) []byte {
			b[starts[line-1]+30] ^= 1
			return b
		})
	}
	for _, c := range []struct {
		name   string
		from   string
		change func(t *testing.T, dir string)
		file   string
		line   int
		what   Fate
	}{
		{"a line before the mark of a later one", lagging, flip(1, 3), segmentName(1), 3, Changed},
		{"the header", lagging, flip(1, 1), segmentName(1), 1, Changed},
		{"the header of a segment without events", headerLast, flip(2, 1), segmentName(2), 1, Changed},
		{"an earlier line", closed, flip(3, 2), segmentName(3), 2, Changed},
		{"the last line, which HEAD vouches for", closed, flip(3, 3), segmentName(3), 3, Changed},
		{"an earlier segment", closed, flip(1, 2), segmentName(1), 2, Changed},
		{"an end cut in a line", closed, edit(3, func(b []byte, s []int) []byte { return b[:len(b)-5] }), segmentName(3), 3, Truncated},
		{"an end cut between lines", closed, edit(3, func(b []byte, s []int) []byte { return b[:s[2]] }), segmentName(3), 2, Truncated},
		{"the last segment gone", closed, func(t *testing.T, dir string) { remove(t, dir, segmentName(3)) }, segmentName(2), 3, Truncated},
		{"a segment gone", closed, func(t *testing.T, dir string) { remove(t, dir, segmentName(2)) }, segmentName(2), 0, Deleted},
		{"all segments gone", closed, func(t *testing.T, dir string) {
			for i := range uint64(3) {
				remove(t, dir, segmentName(i+1))
			}
		}, segmentName(3), 0, Deleted},
		{"HEAD gone", closed, func(t *testing.T, dir string) { remove(t, dir, headName) }, headName, 0, Deleted},
		{"HEAD empty", closed, func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, headName), nil) }, headName, 0, Changed},
		{"lines swapped", closed, edit(2, func(b []byte, s []int) []byte {
			return slices.Concat(b[:s[1]], b[s[2]:], b[s[1]:s[2]])
		}), segmentName(2), 2, Reordered},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := copyDir(t, c.from)
			c.change(t, dir)
			before := copyDir(t, dir)
			r, err := open(Config{Dir: dir}, newTestDisk(dir), usualPace)
			var damage *Damage
			if !errors.As(err, &damage) {
				if err == nil {
					_ = r.Close()
				}
				t.Fatalf("opened: %v", err)
			}
			if damage.File != c.file || damage.Line != c.line || damage.What != c.what {
				t.Errorf("%v; want %s:%d %s", damage, c.file, c.line, c.what)
			}
			if got, want := dirText(t, dir), dirText(t, before); got != want {
				t.Error("the evidence was changed")
			}
		})
	}
}

// headerLast makes a closed recording whose last segment has no events.
func headerLast(t *testing.T) string {
	t.Helper()
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{Retention: time.Hour}, d, slowHead())
	appendAll(t, r, access.Synced, numbered(2)...)
	if _, err := r.rotateOld(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	mustVerify(t, string(d.folder))
	return string(d.folder)
}

// What makes the rest durable comes before what relies on it.
func TestOrderOnDisk(t *testing.T) {
	t.Parallel()
	dir := crashed(t, 4)
	name := filepath.Join(dir, segmentName(1))
	b := readFile(t, name)
	writeFile(t, name, b[:len(b)-5])
	d := newTestDisk(dir)
	var ops []string
	d.set(func(op operation) outcome {
		ops = append(ops, op.kind+" "+strings.TrimPrefix(op.name, "segment-00000000000"))
		return outcome{}
	})
	r, err := open(Config{Dir: dir, SegmentBytes: 100}, d, slowHead())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	torn := strings.TrimPrefix(strings.TrimPrefix(filepath.Base(glob(t, dir, "*"+tornEnd)), "segment-"), "00000000000")
	at := 0
	for _, want := range []string{
		// the torn end is safe before it is cut
		"write " + torn, "sync " + torn, "sync .", "truncate 1.ndjson", "sync 1.ndjson",
		// what a killed process wrote is synced before it is relied on
		"open 1.ndjson", "sync 1.ndjson",
		// a segment is there before it has events
		"open 2.ndjson", "write 2.ndjson", "sync 2.ndjson", "sync .", "write 2.ndjson", "sync 2.ndjson",
		// HEAD is whole before it has its name
		"write HEAD.tmp", "sync HEAD.tmp", "rename HEAD",
	} {
		i := slices.Index(ops[at:], want)
		if i < 0 {
			t.Fatalf("no %q where it should be in\n%s", want, strings.Join(ops, "\n"))
		}
		at += i + 1
	}
}

func glob(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%q, %v", found, err)
	}
	return found[0]
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func dirText(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%s\n%s\n", e.Name(), readFile(t, filepath.Join(dir, e.Name())))
	}
	return b.String()
}

// kill -9 at any moment loses nothing for which Append had returned.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acked := map[string]bool{}
	for round := range 4 {
		c := startChild(t, "kill", dir)
		for n := 0; n < 300+100*round; n++ {
			if !c.lines.Scan() {
				t.Fatalf("the child ended by itself: %v", c.lines.Err())
			}
			acked[c.lines.Text()] = true
		}
		if err := c.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for c.lines.Scan() { // what it had still written into the pipe
			acked[c.lines.Text()] = true
		}
		_ = c.cmd.Wait() // killed
		mustVerify(t, dir)
		found := map[string]bool{}
		for _, name := range names(read(t, dir)) {
			found[name] = true
		}
		for id := range acked {
			if !found[id] {
				t.Fatalf("round %d: %s was recorded, but is lost", round, id)
			}
		}
	}
	r, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if report := mustVerify(t, dir); report.Events() < uint64(len(acked)) {
		t.Errorf("report %+v for %d events", report, len(acked))
	}
}

// killChild appends without end and prints the name of each event once it is
// recorded.
func killChild(dir string) int {
	r, err := Open(Config{Dir: dir, SegmentBytes: 100 << 10})
	if err != nil {
		return fatal(err)
	}
	stdout := &lineWriter{w: os.Stdout}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; tryAppend(r, stdout, w*1_000_000+i) == 0; i++ {
			}
		})
	}
	wg.Wait()
	return 1
}

// tryAppend appends one event, at either level, and prints its name when it is
// recorded; else it returns 1.
func tryAppend(r *Recorder, stdout *lineWriter, i int) int {
	id := fmt.Sprintf("p%d-%d", os.Getpid(), i)
	if r.Append(context.Background(), access.Durability(i%2), ask("ses", id)) != nil {
		return 1
	}
	stdout.line(id)
	return 0
}

// A lineWriter writes whole lines from many goroutines.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lineWriter) line(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := io.WriteString(l.w, s+"\n"); err != nil {
		os.Exit(fatal(err)) // the parent is gone
	}
}

func child(role string) int {
	dir := os.Args[len(os.Args)-1]
	switch role {
	case "kill":
		return killChild(dir)
	case "full":
		return fullChild(dir)
	}
	return fatal(errors.New("unknown role " + role))
}

func fatal(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// ignoreFileSizeSignal lets a write over the limit fail instead of ending the
// process.
func ignoreFileSizeSignal() { signal.Ignore(syscall.SIGXFSZ) }

// A childProcess is this test binary in another role.
type childProcess struct {
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	stderr bytes.Buffer
}

func startChild(t *testing.T, role, dir string) *childProcess {
	t.Helper()
	c := &childProcess{cmd: exec.CommandContext(t.Context(), os.Args[0], dir)}
	c.cmd.Env = append(os.Environ(), childEnv+"="+role)
	c.cmd.Stderr = &c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// output waits for the end and returns everything that was printed.
func (c *childProcess) output() (string, error) {
	var b strings.Builder
	for c.lines.Scan() {
		b.WriteString(c.lines.Text() + "\n")
	}
	if err := c.cmd.Wait(); err != nil {
		return b.String(), fmt.Errorf("%w: %s", err, c.stderr.String())
	}
	return b.String(), c.lines.Err()
}
