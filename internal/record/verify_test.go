package record

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// small makes a closed recording of three segments with three small events
// each.
func small(t testing.TB) string {
	t.Helper()
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{SegmentBytes: 700, Replica: "one"}, d, slowHead())
	for _, id := range []string{"r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9"} {
		appendAll(t, r, access.Synced, row("ses", id, "value of "+id))
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	report := mustVerify(t, string(d.folder))
	if report.Segments != 3 || report.Last != 9 {
		t.Fatalf("report %+v", report)
	}
	return string(d.folder)
}

func damageOf(t *testing.T, dir string) *Damage {
	t.Helper()
	_, err := Verify(dir)
	var d *Damage
	if !errors.As(err, &d) {
		t.Fatalf("no damage found: %v", err)
	}
	return d
}

// Whichever byte of a recording is changed, it is found, and the event that it
// belongs to is named as the first bad one.
func TestEveryFlippedByteIsFound(t *testing.T) {
	t.Parallel()
	dir := small(t)
	flips := []func(i int, b byte) byte{
		func(i int, b byte) byte { return b ^ 1<<(i%8) },
		func(i int, b byte) byte {
			if b == '\n' {
				return ' '
			}
			return '\n'
		},
	}
	for segment := range uint64(3) {
		name := filepath.Join(dir, segmentName(segment+1))
		b := readFile(t, name)
		line, seq := 1, 3*segment+1 // a header stands for the event after it
		for i, c := range b {
			for n, flip := range flips {
				if n == 1 && c != '\n' && i%7 != 0 {
					continue // a sample is enough of what breaks a line in two
				}
				b[i] = flip(i, c)
				writeFile(t, name, b)
				d := damageOf(t, dir)
				if d.File != segmentName(segment+1) || d.Line != line || d.Seq != seq ||
					d.What != Changed && !(d.What == Truncated && i == len(b)-1) {
					t.Errorf("%s byte %d from %q to %q: %v; want line %d, event %d", d.File, i, c, b[i], d, line, seq)
				}
			}
			b[i] = c
			if c == '\n' {
				if line > 1 {
					seq++
				}
				line++
			}
		}
		writeFile(t, name, b)
	}
	name := filepath.Join(dir, headName)
	b := readFile(t, name)
	for i, c := range b {
		b[i] ^= 1 << (i % 8)
		writeFile(t, name, b)
		if d := damageOf(t, dir); d.File != headName || d.What != Changed {
			t.Errorf("HEAD byte %d: %v", i, d)
		}
		b[i] = c
	}
	writeFile(t, name, b)
	mustVerify(t, dir)
}

// forge rewrites lines of a segment; each gets a checksum that fits, as someone
// who knows the format would give it.
func forge(t *testing.T, dir string, segment uint64, change func(lines [][]byte) [][]byte) {
	t.Helper()
	name := filepath.Join(dir, segmentName(segment))
	lines := bytes.Split(bytes.TrimSuffix(readFile(t, name), []byte("\n")), []byte("\n"))
	lines = change(lines)
	for i, l := range lines {
		lines[i], _ = seal(bytes.Clone(l[:len(l)-crcSuffix]), 0)
	}
	writeFile(t, name, append(bytes.Join(lines, []byte("\n")), '\n'))
}

func replace(line int, from, to string) func([][]byte) [][]byte {
	return func(lines [][]byte) [][]byte {
		lines[line-1] = bytes.Replace(lines[line-1], []byte(from), []byte(to), 1)
		return lines
	}
}

func TestVerifyNamesWhatWasDone(t *testing.T) {
	t.Parallel()
	from := small(t)
	file := func(dir string, segment uint64) string { return filepath.Join(dir, segmentName(segment)) }
	mv := func(t *testing.T, from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		do   func(t *testing.T, dir string)
		want Damage
	}{
		{"an event rewritten", func(t *testing.T, dir string) { forge(t, dir, 2, replace(3, "value", "other")) },
			Damage{segmentName(2), 3, 5, Changed, ""}},
		{"the last event of a segment rewritten", func(t *testing.T, dir string) { forge(t, dir, 1, replace(4, "value", "other")) },
			Damage{segmentName(1), 4, 3, Changed, ""}},
		{"the last event of all rewritten", func(t *testing.T, dir string) { forge(t, dir, 3, replace(4, "value", "other")) },
			Damage{segmentName(3), 4, 9, Changed, ""}},
		{"the last event but one rewritten", func(t *testing.T, dir string) { forge(t, dir, 3, replace(3, "value", "other")) },
			Damage{segmentName(3), 3, 8, Changed, ""}},
		{"a header rewritten", func(t *testing.T, dir string) { forge(t, dir, 2, replace(1, "one", "two")) },
			Damage{segmentName(2), 1, 4, Changed, ""}},
		{"the hash in a line rewritten", func(t *testing.T, dir string) {
			forge(t, dir, 2, func(lines [][]byte) [][]byte {
				copy(lines[2][len(`{"seq":5,"prev":"`):], "0123")
				return lines
			})
		}, Damage{segmentName(2), 3, 5, Changed, ""}},
		{"an event deleted", func(t *testing.T, dir string) {
			forge(t, dir, 2, func(lines [][]byte) [][]byte { return slices.Delete(lines, 2, 3) })
		}, Damage{segmentName(2), 3, 5, Deleted, ""}},
		{"the first event deleted", func(t *testing.T, dir string) {
			forge(t, dir, 1, func(lines [][]byte) [][]byte { return slices.Delete(lines, 1, 2) })
		}, Damage{segmentName(1), 2, 1, Deleted, ""}},
		{"the end of a segment deleted", func(t *testing.T, dir string) {
			forge(t, dir, 2, func(lines [][]byte) [][]byte { return lines[:3] })
		}, Damage{segmentName(3), 1, 6, Deleted, ""}},
		{"two events swapped", func(t *testing.T, dir string) {
			forge(t, dir, 2, func(lines [][]byte) [][]byte {
				lines[1], lines[2] = lines[2], lines[1]
				return lines
			})
		}, Damage{segmentName(2), 2, 4, Reordered, ""}},
		{"an event moved to a later segment", func(t *testing.T, dir string) {
			var moved []byte
			forge(t, dir, 1, func(lines [][]byte) [][]byte {
				moved = lines[2]
				return slices.Delete(lines, 2, 3)
			})
			forge(t, dir, 3, func(lines [][]byte) [][]byte { return append(lines, moved) })
		}, Damage{segmentName(1), 3, 2, Reordered, ""}},
		{"an event repeated", func(t *testing.T, dir string) {
			forge(t, dir, 2, func(lines [][]byte) [][]byte { return slices.Insert(lines, 2, lines[1]) })
		}, Damage{segmentName(2), 3, 5, Reordered, ""}},
		{"two segments swapped", func(t *testing.T, dir string) {
			mv(t, file(dir, 1), file(dir, 7))
			mv(t, file(dir, 2), file(dir, 1))
			mv(t, file(dir, 7), file(dir, 2))
		}, Damage{segmentName(1), 1, 1, Reordered, ""}},
		{"a segment deleted", func(t *testing.T, dir string) { remove(t, dir, segmentName(2)) },
			Damage{segmentName(2), 0, 4, Deleted, ""}},
		{"the first segment deleted", func(t *testing.T, dir string) { remove(t, dir, segmentName(1)) },
			Damage{segmentName(2), 1, 1, Deleted, ""}},
		{"the last segment deleted", func(t *testing.T, dir string) { remove(t, dir, segmentName(3)) },
			Damage{segmentName(3), 0, 7, Truncated, ""}},
		{"all segments deleted", func(t *testing.T, dir string) {
			for i := range uint64(3) {
				remove(t, dir, segmentName(i+1))
			}
		}, Damage{segmentName(1), 0, 1, Truncated, ""}},
		{"the last event deleted", func(t *testing.T, dir string) {
			forge(t, dir, 3, func(lines [][]byte) [][]byte { return lines[:3] })
		}, Damage{segmentName(3), 4, 9, Truncated, ""}},
		{"the last event cut", func(t *testing.T, dir string) {
			b := readFile(t, file(dir, 3))
			writeFile(t, file(dir, 3), b[:len(b)-30])
		}, Damage{segmentName(3), 4, 9, Truncated, ""}},
		{"a segment emptied", func(t *testing.T, dir string) { writeFile(t, file(dir, 2), nil) },
			Damage{segmentName(2), 1, 4, Truncated, ""}},
		{"HEAD deleted", func(t *testing.T, dir string) { remove(t, dir, headName) },
			Damage{headName, 0, 10, Deleted, ""}},
		{"HEAD of another recording", func(t *testing.T, dir string) {
			if err := writeHead(folder(dir), head{Segment: 2, Seq: 5}); err != nil {
				t.Fatal(err)
			}
		}, Damage{headName, 1, 5, Changed, ""}},
		{"lines added behind the end", func(t *testing.T, dir string) {
			forge(t, dir, 3, func(lines [][]byte) [][]byte { return append(lines, []byte(strings.Repeat("x", 40))) })
		}, Damage{segmentName(3), 5, 10, Changed, ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := copyDir(t, from)
			c.do(t, dir)
			d := damageOf(t, dir)
			if got := (Damage{d.File, d.Line, d.Seq, d.What, ""}); got != c.want {
				t.Errorf("%v; want %v", d, &c.want)
			}
			if d.Detail == "" || !strings.Contains(d.Error(), string(c.want.What)) {
				t.Errorf("says %q", d)
			}
		})
	}
}

func TestVerifyWithoutRecording(t *testing.T) {
	t.Parallel()
	var d *Damage
	for name, dir := range map[string]string{"empty folder": t.TempDir(), "no folder": filepath.Join(t.TempDir(), "x")} {
		if _, err := Verify(dir); err == nil || errors.As(err, &d) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A line that fits the chain but holds no event was not written by a recorder.
func TestVerifyWantsJSON(t *testing.T) {
	t.Parallel()
	d := newTestDisk(t.TempDir())
	r := openTest(t, Config{}, d, slowHead())
	req, err := r.encode(access.Synced, numbered(1))
	if err != nil {
		t.Fatal(err)
	}
	req.payloads[0] = []byte(`{"time":}`)
	if err := errors.Join(r.waitForRoom(t.Context(), req.bytes), r.enqueue(t.Context(), req, nil)); err != nil {
		t.Fatal(err)
	}
	if err := <-req.done; err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if d := damageOf(t, string(d.folder)); d.Line != 2 || d.Seq != 1 || d.What != Changed {
		t.Errorf("%v", d)
	}
}
