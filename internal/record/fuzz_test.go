package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzReader puts arbitrary bytes in the place of a segment. Nothing panics;
// what Verify accepts is a chain by an independent reading; and what Open
// continues is whole.
func FuzzReader(f *testing.F) {
	for _, seed := range fuzzSeeds(f) {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, segment []byte, forged bool) {
		if forged {
			segment = resealed(segment)
		}
		dir := t.TempDir()
		name := filepath.Join(dir, segmentName(1))
		writeFile(t, name, segment)
		if err := writeHead(newTestDisk(dir), head{}); err != nil {
			t.Fatal(err)
		}
		report, err := Verify(dir)
		if err == nil {
			mustBeChain(t, segment[:len(segment)-int(report.Torn)], report.Last)
		}
		reader, openErr := OpenReader(dir)
		if openErr != nil {
			t.Fatal(openErr)
		}
		n := uint64(0)
		for _, readErr := range reader.Events(t.Context()) {
			if err == nil && readErr != nil {
				if forged { // JSON, but no event: it takes a forger to write it
					return
				}
				t.Fatalf("verified, but: %v", readErr)
			}
			n++
		}
		if err == nil && n != report.Last {
			t.Fatalf("read %d events of %d", n, report.Last)
		}
		_, _ = reader.Sessions(t.Context(), SessionFilter{}) // must not panic
		if _, openErr := reopen(dir, newTestDisk(dir)); openErr != nil {
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, segment) {
				t.Fatalf("refused and changed: %v, %v", openErr, err)
			}
			return
		}
		report, err = Verify(dir)
		var damage *Damage
		if forged && errors.As(err, &damage) && damage.Detail == "the line is not JSON" {
			return // Open checks the chain, not what it carries
		}
		if err != nil || report.Torn != 0 {
			t.Fatalf("continued with %d bytes of a torn end: %v", report.Torn, err)
		}
	})
}

// resealed gives every line a checksum that fits, so that mutations get past
// it.
func resealed(segment []byte) []byte {
	lines := bytes.SplitAfter(segment, []byte("\n"))
	for i, l := range lines {
		if body, ended := bytes.CutSuffix(l, []byte("\n")); ended && len(body) > crcSuffix {
			sealed, _ := seal(bytes.Clone(body[:len(body)-crcSuffix]), 0)
			lines[i] = append(sealed, '\n')
		}
	}
	return bytes.Join(lines, nil)
}

func fuzzSeeds(f *testing.F) [][]byte {
	whole := readFile(f, filepath.Join(crashed(f, 5), segmentName(1)))
	starts := lineStarts(whole)
	hole := bytes.Clone(whole)
	clear(hole[starts[3]+5 : starts[4]+5])
	flipped := bytes.Clone(whole)
	flipped[starts[2]+120] ^= 4
	return [][]byte{
		nil, []byte("\n"), []byte("{}\n{}\n"), whole, whole[:starts[1]], whole[:starts[3]+17], whole[starts[1]:],
		hole, flipped, append(bytes.Clone(whole), whole[starts[1]:]...),
	}
}

// mustBeChain checks a segment without any of the code that Verify uses.
func mustBeChain(t *testing.T, segment []byte, last uint64) {
	t.Helper()
	if len(segment) == 0 && last == 0 {
		return
	}
	lines := bytes.Split(segment, []byte("\n"))
	if len(lines[len(lines)-1]) != 0 || uint64(len(lines)) != last+2 {
		t.Fatalf("%d lines for %d events", len(lines)-1, last)
	}
	prev := hex.EncodeToString(make([]byte, sha256.Size))
	for i, line := range lines[:len(lines)-1] {
		var l struct {
			Seq    uint64
			Prev   string
			Format string
		}
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		if l.Prev != prev || l.Seq != uint64(i) || (l.Format == formatName) != (i == 0) {
			t.Fatalf("line %d is %+v after %s", i+1, l, prev)
		}
		sum := sha256.Sum256(line)
		prev = hex.EncodeToString(sum[:])
	}
}
