package record

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// A lineReader reads lines with their places. A line longer than maxLineBytes
// is cut short, which no checksum survives.
type lineReader struct {
	r      *bufio.Reader
	buf    []byte
	offset int64 // of the first byte that was not yet returned
	line   int   // number of the line returned last, from 1
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// next returns the next line without its newline; it is valid until the next
// call. whole is false for a last line without newline. The error is io.EOF
// when nothing is left.
func (l *lineReader) next() (line []byte, whole bool, err error) {
	l.buf = l.buf[:0]
	begun := false
	for {
		part, err := l.r.ReadSlice('\n')
		if len(part) > 0 && !begun {
			begun = true
			l.line++
		}
		l.offset += int64(len(part))
		if room := maxLineBytes + 1 - len(l.buf); room > 0 {
			l.buf = append(l.buf, part[:min(room, len(part))]...)
		}
		switch {
		case err == nil:
			if n := len(l.buf); l.buf[n-1] == '\n' {
				return l.buf[:n-1], true, nil
			}
			return l.buf, true, nil // cut short
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && begun:
			return l.buf, false, nil
		default:
			return nil, false, err
		}
	}
}

// A position is a place in the chain: the last event up to it, and the hash
// of the line before it. offset is the place in the line's segment.
type position struct {
	seq    uint64
	hash   Hash
	offset int64
}

// A spot is where a line is: its file, its number from 1, and the event that
// it holds or should hold. For a header that is the event to follow.
type spot struct {
	file string
	line int
	seq  uint64
}

// A flaw is where a walk along the chain had to stop.
type flaw struct {
	kind   flawKind
	at     spot
	offset int64  // where the line begins
	got    uint64 // what wrongSeq found
	hash   Hash   // of the line, when wrongPrev
}

type flawKind int

const (
	unreadable  flawKind = iota // not a line of the recorder, or not any more
	unfinished                  // a last line without newline
	headerless                  // a file without a whole first line
	wrongFile                   // the header is of another segment
	wrongSeq                    // whole, but not the event that follows
	wrongPrev                   // whole and in order, but it follows another line
	missingFile                 // no such segment
)

// A walk checks lines one after the other. The first header that it meets is
// taken at its word for what came before, unless anchored is set.
type walk struct {
	dir      string
	anchored bool
	at       position
	last     spot // of the line at at
	header   header
	// visit, when set, sees every line of an event that continues the chain.
	// The line is valid during the call only.
	visit func(line []byte, e entry) error
	// reached, when set, sees the position after each line, headers included.
	reached func()
}

// segment walks one segment to its end, to the first flaw or to an error of
// the disk or of visit.
func (w *walk) segment(ordinal uint64) (*flaw, error) {
	name := segmentName(ordinal)
	f, err := os.Open(filepath.Join(w.dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := newLineReader(f)
	for {
		begin := lines.offset
		line, whole, err := lines.next()
		at := spot{name, lines.line, w.at.seq + 1}
		switch {
		case errors.Is(err, io.EOF) && lines.line == 0:
			return &flaw{kind: headerless, at: spot{name, 1, at.seq}}, nil
		case errors.Is(err, io.EOF):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", name, err)
		case lines.line == 1 && !whole:
			return &flaw{kind: headerless, at: at}, nil
		case !whole:
			return &flaw{kind: unfinished, at: at, offset: begin}, nil
		case lines.line == 1:
			if fl := w.enter(line, ordinal, at); fl != nil {
				return fl, nil
			}
			at.seq = w.header.Start
		default:
			if fl, err := w.event(line, at, begin); fl != nil || err != nil {
				return fl, err
			}
		}
		w.at.offset, w.last = lines.offset, at
		if w.reached != nil {
			w.reached()
		}
	}
}

// enter checks the first line of a segment.
func (w *walk) enter(line []byte, ordinal uint64, at spot) *flaw {
	h, hash, ok := parseHeader(line)
	switch {
	case !ok:
		return &flaw{kind: unreadable, at: at}
	case h.Segment != ordinal:
		return &flaw{kind: wrongFile, at: at, got: h.Segment}
	case !w.anchored:
		w.anchored, w.at.seq = true, h.Start-1
	case h.Start != w.at.seq+1:
		return &flaw{kind: wrongSeq, at: at, got: h.Start}
	case h.Prev != w.at.hash:
		return &flaw{kind: wrongPrev, at: at, hash: hash}
	}
	w.header, w.at.hash = h, hash
	return nil
}

// event checks the line of an event.
func (w *walk) event(line []byte, at spot, begin int64) (*flaw, error) {
	e, ok := parseEvent(line)
	switch {
	case !ok:
		return &flaw{kind: unreadable, at: at, offset: begin}, nil
	case e.seq != at.seq:
		return &flaw{kind: wrongSeq, at: at, offset: begin, got: e.seq}, nil
	case e.prev != w.at.hash:
		return &flaw{kind: wrongPrev, at: at, offset: begin, hash: e.hash}, nil
	}
	if w.visit != nil {
		if err := w.visit(line, e); err != nil {
			return nil, err
		}
	}
	w.at.seq, w.at.hash = e.seq, e.hash
	return nil, nil
}
