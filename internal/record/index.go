package record

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

const (
	// maxIndexed bounds the session parts that an index keeps. A segment that
	// does not fit is read anew each time.
	maxIndexed = 1 << 15
	// maxRecent bounds the ended requests of a segment that are remembered in
	// order not to count one twice, maxOpen the ones of a session that have not
	// ended.
	maxRecent = 1 << 12
	maxOpen   = 1 << 12
)

// An index knows which segments hold what of which session. It reads a segment
// when it is first asked about it, and later only what was added since.
type index struct {
	dir   string
	bound int
	turn  chan struct{} // a token: who holds it reads and changes the rest

	parts    int
	segments map[uint64]*segmentIndex
	used     uint64 // counts queries
}

// A segmentIndex is what one segment holds, up to at.
type segmentIndex struct {
	at             place
	parts          map[string]*part
	recent, before map[string]struct{} // requests that had their outcome lately
	used           uint64
}

// A part is what one segment holds of one session.
type part struct {
	from    place // before its first event there
	to      int64 // offset after its last
	summary SessionSummary
	open    map[string]struct{} // requests without an outcome here
}

func newIndex(dir string, bound int) *index {
	return &index{dir: dir, bound: bound, turn: make(chan struct{}, 1), segments: map[uint64]*segmentIndex{}}
}

// find returns where the events of a session are, oldest first.
func (x *index) find(ctx context.Context, id string) ([]span, error) {
	var spans []span
	err := x.each(ctx, func(ordinal uint64, si *segmentIndex, last bool) bool {
		if p := si.parts[id]; p != nil {
			spans = append(spans, span{ordinal: ordinal, from: p.from, to: p.to, last: last})
			return p.summary.Opened.IsZero() // nothing of it is older than its opening
		}
		return true
	})
	slices.Reverse(spans)
	return spans, err
}

// each calls f with what each segment holds, newest first, until f returns
// false. f must keep nothing.
func (x *index) each(ctx context.Context, f func(ordinal uint64, si *segmentIndex, last bool) bool) error {
	select {
	case x.turn <- struct{}{}:
		defer func() { <-x.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ordinals, err := segments(x.dir)
	if err != nil {
		return fmt.Errorf("read recording: %w", err)
	}
	x.forget(ordinals)
	x.used++
	for i := len(ordinals) - 1; i >= 0; i-- {
		last := i == len(ordinals)-1
		si, err := x.segment(ctx, ordinals[i], last)
		if errors.Is(err, fs.ErrNotExist) {
			continue // pruned since
		}
		if err != nil {
			return err
		}
		more := f(ordinals[i], si, last)
		x.shrink()
		if !more {
			return nil
		}
	}
	return nil
}

// forget drops the segments that are no more.
func (x *index) forget(ordinals []uint64) {
	for ordinal, si := range x.segments {
		if len(ordinals) == 0 || ordinal < ordinals[0] {
			x.parts -= len(si.parts)
			delete(x.segments, ordinal)
		}
	}
}

// shrink drops what was used longest ago, and of that the oldest, until the
// bound holds.
func (x *index) shrink() {
	for x.parts > x.bound {
		var victim uint64
		for ordinal, si := range x.segments {
			v := x.segments[victim]
			if v == nil || si.used < v.used || si.used == v.used && ordinal < victim {
				victim = ordinal
			}
		}
		x.parts -= len(x.segments[victim].parts)
		delete(x.segments, victim)
	}
}

// segment brings the index of one segment up to date.
func (x *index) segment(ctx context.Context, ordinal uint64, last bool) (*segmentIndex, error) {
	info, err := os.Stat(filepath.Join(x.dir, segmentName(ordinal)))
	if err != nil {
		return nil, err
	}
	si := x.segments[ordinal]
	if si != nil && info.Size() < si.at.offset { // a fault cut it back
		x.parts -= len(si.parts)
		si = nil
	}
	if si == nil {
		si = &segmentIndex{parts: map[string]*part{}, recent: map[string]struct{}{}}
		x.segments[ordinal] = si
	}
	si.used = x.used
	if info.Size() == si.at.offset && info.Size() > 0 {
		return si, nil
	}
	before := len(si.parts)
	err = si.catchUp(ctx, x.dir, ordinal, last)
	x.parts += len(si.parts) - before
	return si, err
}

// catchUp reads what was added to the segment.
func (si *segmentIndex) catchUp(ctx context.Context, dir string, ordinal uint64, last bool) error {
	lines, err := openSegmentReader(dir, ordinal, si.at, last)
	if err != nil {
		return err
	}
	defer lines.close()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		from := lines.at
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			si.at = lines.at
			return nil
		}
		if err != nil {
			return err
		}
		if from.offset == 0 { // the header is no part of a session
			from = place{offset: lines.at.offset - int64(len(line)) - 1, line: lines.at.line - 1, seq: lines.at.seq - 1}
		}
		if err := si.add(line, from, lines.at); err != nil {
			return err
		}
		si.at = lines.at
	}
}

// An indexedEvent is what an index needs of an event; the rest is skipped.
type indexedEvent struct {
	Time    time.Time
	Session string
	Request string
	Opened  *access.SessionOpened
	Closed  *access.SessionClosed
	Decided *struct {
		Request struct {
			Principal access.Principal
			Resource  access.Resource
		}
		Decision struct{ Effect access.Effect }
	}
	Denied   *struct{}
	Approval *struct{ State access.ApprovalState }
	Executed *struct{}
	Ended    *struct{}
}

// add counts one event, whose line is between two places.
func (si *segmentIndex) add(line []byte, from, to place) error {
	if !bytes.Contains(line, []byte(`"session":"`)) {
		return nil
	}
	var ev indexedEvent
	if err := json.Unmarshal(line, &ev); err != nil {
		return fmt.Errorf("index event %d: %w", to.seq, err)
	}
	if ev.Session == "" {
		return nil
	}
	p := si.parts[ev.Session]
	if p == nil {
		p = &part{from: from, open: map[string]struct{}{}, summary: SessionSummary{ID: ev.Session, First: to.seq}}
		si.parts[ev.Session] = p
	}
	p.to = to.offset
	p.summary.Last, p.summary.LastTime = to.seq, ev.Time
	p.summary.Events++
	si.count(p, ev)
	return nil
}

// count sorts an event into its session's summary. Requests are counted by
// their outcome, of which each has one, so that none counts twice when it
// goes on in the next segment.
func (si *segmentIndex) count(p *part, ev indexedEvent) {
	s := &p.summary
	switch {
	case ev.Opened != nil:
		o := ev.Opened.Session
		s.Principal, s.Resource, s.Client, s.Opened = o.Principal, o.Resource, o.Client, o.Opened
		if s.Opened.IsZero() {
			s.Opened = ev.Time
		}
	case ev.Closed != nil:
		s.Closed, s.Cause = ev.Time, ev.Closed.Cause
	case ev.Decided != nil:
		if s.Resource.Name == "" {
			s.Principal, s.Resource = ev.Decided.Request.Principal, ev.Decided.Request.Resource
		}
		if ev.Decided.Decision.Effect != access.Deny {
			p.begin(ev.Request)
		} else if si.finish(p, ev.Request) {
			s.Denied++
		}
	case ev.Denied != nil:
		if si.finish(p, ev.Request) {
			s.Denied++
		}
	case ev.Approval != nil:
		switch ev.Approval.State {
		case access.Granted:
			s.Approved++
		case access.Abandoned: // nobody is left to be told; otherwise a denial follows
			si.finish(p, ev.Request)
		}
	case ev.Executed != nil:
		p.begin(ev.Request)
	case ev.Ended != nil:
		si.finish(p, ev.Request)
	}
}

// begin notes a request that has no outcome yet.
func (p *part) begin(request string) {
	if len(p.open) < maxOpen {
		p.open[request] = struct{}{}
	}
}

// finish counts a request that has its outcome, once.
func (si *segmentIndex) finish(p *part, request string) bool {
	delete(p.open, request)
	_, recent := si.recent[request]
	_, before := si.before[request]
	if request != "" && (recent || before) {
		return false
	}
	p.summary.Requests++
	if len(si.recent) == maxRecent {
		si.recent, si.before = map[string]struct{}{}, si.recent
	}
	si.recent[request] = struct{}{}
	return true
}
