package record

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

const (
	pruneAct = reservedAct + "prune"
	// maxTombstone bounds the segments that one tombstone tells of, so that it
	// stays within an event.
	maxTombstone = 1000
	// maxSegmentAge bounds how long a segment is written, where there is a
	// retention: what is removed is removed as a whole.
	maxSegmentAge = 24 * time.Hour
)

// A tombstone is what remains of removed segments: Verify accepts that they
// are gone when the chain goes on from the end of one of them.
type tombstone struct {
	Retention string        `json:"retention"`
	Segments  []buriedEntry `json:"segments"` // in order
}

// A buriedEntry is one removed segment.
type buriedEntry struct {
	Segment uint64    `json:"segment"`
	First   uint64    `json:"first"` // seq of its first event
	Last    uint64    `json:"last"`  // First-1 when it had none
	Hash    Hash      `json:"hash"`  // of its last line
	Newest  time.Time `json:"newest"`
	Bytes   int64     `json:"bytes"`
}

// Pruned says what Prune removed.
type Pruned struct {
	Segments    int    `json:"segments"`
	Events      uint64 `json:"events"`
	First, Last uint64 // events, when there were any
	Torn        int    `json:"torn"` // files of torn ends
}

// Prune removes the segments whose events are all older than the retention at
// now. That they are removed, and what their end was, is recorded first. A
// damaged segment is evidence: Prune returns its *Damage and removes neither
// it nor anything after it. Prune should run at least daily.
func (r *Recorder) Prune(ctx context.Context, now time.Time) (Pruned, error) {
	select {
	case r.pruning <- struct{}{}:
		defer func() { <-r.pruning }()
	case <-ctx.Done():
		return Pruned{}, context.Cause(ctx)
	}
	var p Pruned
	if r.cfg.Retention == 0 {
		return p, nil
	}
	current, err := r.rotateOld(ctx, now)
	if err != nil {
		return p, fmt.Errorf("prune: %w", err)
	}
	cutoff := now.Add(-r.cfg.Retention)
	for {
		old, damage := r.expired(ctx, cutoff, current)
		if len(old) == 0 {
			p.Torn, err = r.pruneTorn(cutoff)
			if err = errors.Join(damage, err); err != nil {
				return p, fmt.Errorf("prune: %w", err)
			}
			return p, nil
		}
		if err := r.bury(ctx, now, old, &p); err != nil {
			return p, fmt.Errorf("prune: %w", err)
		}
	}
}

// rotateOld ends a segment that has been written for too long, and returns the
// one that is being written.
func (r *Recorder) rotateOld(ctx context.Context, now time.Time) (uint64, error) {
	rot := rotation{before: now.Add(-min(maxSegmentAge, r.cfg.Retention/8)), done: make(chan rotated, 1)}
	select {
	case r.writer.rotates <- rot:
	case <-r.stopped:
		return 0, fmt.Errorf("%w: the recorder is closed", ErrUnavailable)
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	done := <-rot.done
	return done.current, done.err
}

// expired finds the oldest segments with nothing newer than cutoff, verified.
// The error is about the segment after them.
func (r *Recorder) expired(ctx context.Context, cutoff time.Time, current uint64) ([]buriedEntry, error) {
	ordinals, err := segments(r.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var old []buriedEntry
	w := &walk{dir: r.cfg.Dir, anchored: len(ordinals) > 0 && ordinals[0] == 1}
	for _, ordinal := range ordinals {
		if ordinal >= current || len(old) == maxTombstone {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		// A segment begins after the last event of the one before it.
		if next, err := readHeader(r.cfg.Dir, ordinal+1); err == nil && next.Time.After(cutoff) {
			break
		}
		b, err := examine(w, ordinal)
		if err != nil {
			return old, err
		}
		if !b.Newest.Before(cutoff) {
			break
		}
		old = append(old, b)
	}
	return old, nil
}

// examine verifies a segment and sums it up.
func examine(w *walk, ordinal uint64) (buriedEntry, error) {
	b := buriedEntry{Segment: ordinal}
	w.visit = func(line []byte, _ entry) error {
		var stamp struct{ Time time.Time }
		if err := json.Unmarshal(line, &stamp); err != nil {
			return err
		}
		if stamp.Time.After(b.Newest) {
			b.Newest = stamp.Time
		}
		return nil
	}
	fl, err := w.segment(ordinal)
	if err != nil {
		return b, err
	}
	if fl != nil {
		return b, survey{dir: w.dir, ordinal: ordinal, last: ordinal}.diagnose(fl, w.last)
	}
	if w.header.Time.After(b.Newest) {
		b.Newest = w.header.Time
	}
	b.First, b.Last, b.Hash, b.Bytes = w.header.Start, w.at.seq, w.at.hash, w.at.offset
	return b, nil
}

func readHeader(dir string, ordinal uint64) (header, error) {
	f, lines, err := openAt(dir, ordinal, 0)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	line, _, err := lines.next()
	if err != nil {
		return header{}, err
	}
	h, _, ok := parseHeader(line)
	if !ok {
		return header{}, fmt.Errorf("%s has no header", segmentName(ordinal))
	}
	return h, nil
}

// bury records the tombstone and then removes the segments, oldest first.
func (r *Recorder) bury(ctx context.Context, now time.Time, old []buriedEntry, p *Pruned) error {
	stone := tombstone{Retention: r.cfg.Retention.String(), Segments: old}
	on := fmt.Sprintf("%s … %s", segmentName(old[0].Segment), segmentName(old[len(old)-1].Segment))
	ev := r.own(pruneAct, on, stone)
	ev.Time = now
	if err := r.append(ctx, access.Synced, ev); err != nil {
		return err
	}
	for _, b := range old {
		if err := os.Remove(filepath.Join(r.cfg.Dir, segmentName(b.Segment))); err != nil {
			return err
		}
		p.Segments++
		p.Events += b.Last + 1 - b.First
		if p.First == 0 {
			p.First = b.First
		}
		p.Last = b.Last
	}
	return syncFolder(folder(r.cfg.Dir))
}

// pruneTorn removes the torn ends that crashes left before cutoff.
func (r *Recorder) pruneTorn(cutoff time.Time) (removed int, err error) {
	entries, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "segment-") || !strings.HasSuffix(e.Name(), tornEnd) {
			continue
		}
		info, statErr := e.Info()
		if errors.Is(statErr, fs.ErrNotExist) || statErr == nil && !info.ModTime().Before(cutoff) {
			continue
		}
		if statErr == nil {
			statErr = os.Remove(filepath.Join(r.cfg.Dir, e.Name()))
		}
		if statErr != nil {
			err = errors.Join(err, statErr)
			continue
		}
		removed++
	}
	return removed, err
}

// parseTombstone reads the tombstone of a line, if it is one.
func parseTombstone(line []byte, seq uint64) (tombstone, time.Time, bool) {
	if !bytes.Contains(line, []byte(`"act":"`+pruneAct+`"`)) {
		return tombstone{}, time.Time{}, false
	}
	ev, err := decodeEvent(line, seq)
	if err != nil || ev.Admin == nil || ev.Admin.Act != pruneAct {
		return tombstone{}, time.Time{}, false
	}
	var t tombstone
	if json.Unmarshal(ev.Admin.Input, &t) != nil || len(t.Segments) == 0 {
		return tombstone{}, time.Time{}, false
	}
	return t, ev.Time, true
}
