package record

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"

	"chaperone.dev/chaperone/internal/access"
)

// A Reader reads a recording, also one that a Recorder is writing: it sees
// whole lines only. It checks each line by itself and that no event is missing
// between two; that they are the ones that were written is Verify's to say.
// All methods are safe for concurrent use.
type Reader struct {
	dir   string
	index *index
}

// OpenReader reads the recording in dir. There is nothing to close.
func OpenReader(dir string) (*Reader, error) {
	ordinals, err := segments(dir)
	if err != nil {
		return nil, fmt.Errorf("read recording: %w", err)
	}
	if len(ordinals) == 0 {
		return nil, fmt.Errorf("read recording: %s holds none", dir)
	}
	return newReader(dir), nil
}

func newReader(dir string) *Reader { return &Reader{dir: dir, index: newIndex(dir, maxIndexed)} }

// Events yields every event that is there, oldest first. An error ends it: a
// *Damage where a line is not as it was written.
func (r *Reader) Events(ctx context.Context) iter.Seq2[access.Event, error] {
	return func(yield func(access.Event, error) bool) {
		ordinals, err := segments(r.dir)
		if err != nil {
			yield(access.Event{}, fmt.Errorf("read recording: %w", err))
			return
		}
		var from place
		for i, ordinal := range ordinals {
			s := span{ordinal: ordinal, from: from, last: i == len(ordinals)-1}
			end, more := r.yieldSpan(ctx, s, nil, yield)
			if !more {
				return
			}
			from = place{seq: end}
		}
	}
}

// Session yields the events of one session, oldest first. An error ends it:
// ErrNoSession when there are none.
func (r *Reader) Session(ctx context.Context, id string) iter.Seq2[access.Event, error] {
	return func(yield func(access.Event, error) bool) {
		spans, err := r.index.find(ctx, id)
		if err == nil && len(spans) == 0 {
			err = fmt.Errorf("%w: %q", ErrNoSession, id)
		}
		if err != nil {
			yield(access.Event{}, err)
			return
		}
		match := func(ev access.Event) bool { return ev.Session == id }
		for _, s := range spans {
			if _, more := r.yieldSpan(ctx, s, match, yield); !more {
				return
			}
		}
	}
}

// A span is a part of a segment, from a place to the offset of its end (0: to
// the end of the segment).
type span struct {
	ordinal uint64
	from    place
	to      int64
	last    bool // nothing comes after the segment: it may end in an unfinished line
}

// yieldSpan yields the events of one span. It returns the last event that it
// read, and whether to go on.
func (r *Reader) yieldSpan(ctx context.Context, s span, match func(access.Event) bool,
	yield func(access.Event, error) bool) (seq uint64, more bool) {
	lines, err := openSegmentReader(r.dir, s.ordinal, s.from, s.last)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, true // pruned since
	}
	if err != nil {
		yield(access.Event{}, fmt.Errorf("read recording: %w", err))
		return 0, false
	}
	defer lines.close()
	for s.to == 0 || lines.at.offset < s.to {
		var ev access.Event
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = context.Cause(ctx)
		}
		if err == nil {
			ev, err = lines.decode(line)
		}
		if err != nil {
			yield(access.Event{}, err)
			return 0, false
		}
		if (match == nil || match(ev)) && !yield(ev, nil) {
			return 0, false
		}
	}
	return lines.at.seq, true
}

// A place is between two lines of a segment: the offset at which the next
// begins, the number of the one before, and the last event up to there (0 when
// it is not known).
type place struct {
	offset int64
	line   int
	seq    uint64
}

// A segmentReader reads the lines of one segment's events.
type segmentReader struct {
	file    *os.File
	lines   *lineReader
	ordinal uint64
	last    bool
	at      place
}

// openSegmentReader opens a segment at a place in it.
func openSegmentReader(dir string, ordinal uint64, from place, last bool) (*segmentReader, error) {
	f, lines, err := openAt(dir, ordinal, from.offset)
	if err != nil {
		return nil, err
	}
	lines.line = from.line
	return &segmentReader{file: f, lines: lines, ordinal: ordinal, last: last, at: from}, nil
}

func (s *segmentReader) close() { _ = s.file.Close() } // it was only read

// next returns the line of the next event, checked by itself and against the
// event before; it is valid until the next call. io.EOF ends the segment.
func (s *segmentReader) next() ([]byte, error) {
	for {
		line, whole, err := s.lines.next()
		switch {
		case errors.Is(err, io.EOF) && s.at.offset == 0 && !s.last:
			return nil, s.damage("the file is empty")
		case errors.Is(err, io.EOF), err == nil && !whole && s.last:
			return nil, io.EOF
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", segmentName(s.ordinal), err)
		case !whole:
			return nil, s.damage("the file ends within the line")
		}
		isHeader := s.at.offset == 0
		if isHeader {
			err = s.header(line)
		} else {
			err = s.event(line)
		}
		if err != nil {
			return nil, err
		}
		s.at.offset, s.at.line = s.lines.offset, s.lines.line
		if !isHeader {
			return line, nil
		}
	}
}

func (s *segmentReader) header(line []byte) error {
	h, _, ok := parseHeader(line)
	switch {
	case !ok || h.Segment != s.ordinal:
		return s.damage("the header is not as it was written")
	case s.at.seq > 0 && h.Start > s.at.seq+1:
		return s.damage(fmt.Sprintf("the next event that is there is %d", h.Start))
	}
	// Start may be smaller: a fault of the disk cut the segment before it back
	// while it was read.
	s.at.seq = h.Start - 1
	return nil
}

func (s *segmentReader) event(line []byte) error {
	e, ok := parseEvent(line)
	switch {
	case !ok:
		return s.damage("the line is not as it was written")
	case e.seq != s.at.seq+1:
		return s.damage(fmt.Sprintf("event %d stands in its place", e.seq))
	}
	s.at.seq = e.seq
	return nil
}

// decode reads the event of the line that next returned last.
func (s *segmentReader) decode(line []byte) (access.Event, error) {
	ev, err := decodeEvent(line, s.at.seq)
	if err != nil {
		return ev, &Damage{File: segmentName(s.ordinal), Line: s.at.line, Seq: s.at.seq, What: Changed, Detail: err.Error()}
	}
	return ev, nil
}

func (s *segmentReader) damage(detail string) error {
	return &Damage{File: segmentName(s.ordinal), Line: max(s.lines.line, 1), Seq: s.at.seq + 1, What: Changed, Detail: detail}
}
