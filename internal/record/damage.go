package record

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// A Damage is the first place where a recording is not what was recorded. It
// is an error.
type Damage struct {
	File   string `json:"file"`           // within the recording's folder
	Line   int    `json:"line,omitempty"` // from 1; 0 when it is the whole file
	Seq    uint64 `json:"seq"`            // the first bad event; for a header the event to follow it
	What   Fate   `json:"what"`
	Detail string `json:"detail"`
}

// A Fate is what became of a bad event.
type Fate string

// The fates. Removal on schedule is none of them.
const (
	Changed   Fate = "changed"
	Deleted   Fate = "deleted"
	Reordered Fate = "reordered"
	Truncated Fate = "truncated"
)

// Error returns "file:line: event N was changed: detail".
func (d *Damage) Error() string {
	place := d.File
	if d.Line > 0 {
		place = fmt.Sprintf("%s:%d", d.File, d.Line)
	}
	return fmt.Sprintf("%s: event %d was %s: %s", place, d.Seq, d.What, d.Detail)
}

// A survey is what is known of a folder when a walk through it meets a flaw.
type survey struct {
	dir     string
	ordinal uint64 // of the segment with the flaw
	last    uint64 // of the last segment
	head    head
	headOK  bool
}

// diagnose says what a flaw means. last is the line before it.
func (s survey) diagnose(fl *flaw, last spot) *Damage {
	d := &Damage{File: fl.at.file, Line: fl.at.line, Seq: fl.at.seq, What: Changed}
	switch fl.kind {
	case unreadable:
		d.Detail = "the line is not as it was written"
	case unfinished, headerless:
		d.What, d.Detail = Truncated, "the file ends within the line"
	case wrongFile:
		d.What, d.Detail = Reordered, fmt.Sprintf("the file holds segment %d", fl.got)
	case missingFile:
		d.Line, d.What, d.Detail = 0, Deleted, "there is no such file"
	case wrongSeq:
		s.diagnoseSeq(d, fl)
	case wrongPrev:
		// Either this line or the one before it is not the one that was
		// written. If what comes after vouches for this one, it is the other.
		if s.vouched(fl) {
			d.File, d.Line, d.Seq = last.file, last.line, last.seq
			d.Detail = "the next line names another hash"
		} else {
			d.Detail = "the line does not name the hash of the one before it"
		}
	}
	return d
}

func (s survey) diagnoseSeq(d *Damage, fl *flaw) {
	switch {
	case fl.got < fl.at.seq:
		d.What, d.Detail = Reordered, fmt.Sprintf("event %d stands in its place", fl.got)
	case s.appears(fl):
		d.What, d.Detail = Reordered, fmt.Sprintf("event %d stands in its place, and it comes later", fl.got)
	case fl.got-1 > fl.at.seq:
		d.What, d.Detail = Deleted, fmt.Sprintf("events %d to %d are missing", fl.at.seq, fl.got-1)
	default:
		d.What, d.Detail = Deleted, "it is missing"
	}
}

// appears reports whether the event that should stand at the flaw stands
// anywhere after it.
func (s survey) appears(fl *flaw) bool {
	offset := fl.offset
	for ordinal := s.ordinal; ordinal <= s.last; ordinal++ {
		found := errors.New("found")
		err := eachEntry(s.dir, ordinal, offset, func(e entry) error {
			if e.seq == fl.at.seq {
				return found
			}
			return nil
		})
		if errors.Is(err, found) {
			return true
		}
		offset = 0
	}
	return false
}

// vouched reports whether the line after the flaw, or HEAD, names its hash.
func (s survey) vouched(fl *flaw) bool {
	if s.headOK && s.head.Hash == fl.hash {
		return true
	}
	f, lines, err := openAt(s.dir, s.ordinal, fl.offset)
	if err != nil {
		return false
	}
	defer f.Close()
	if _, _, err := lines.next(); err != nil {
		return false
	}
	line, whole, err := lines.next()
	if err == nil {
		e, ok := parseEvent(line)
		return ok && whole && e.prev == fl.hash
	}
	if !errors.Is(err, io.EOF) || s.ordinal == s.last {
		return false
	}
	next, lines, err := openAt(s.dir, s.ordinal+1, 0)
	if err != nil {
		return false
	}
	defer next.Close()
	line, whole, err = lines.next()
	h, _, ok := parseHeader(line)
	return err == nil && whole && ok && h.Prev == fl.hash
}

// eachEntry calls f for every whole line of an event from offset on, in
// whatever order and chain they stand.
func eachEntry(dir string, ordinal uint64, offset int64, f func(entry) error) error {
	r, lines, err := openAt(dir, ordinal, offset)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		line, whole, err := lines.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if e, ok := parseEvent(line); ok && whole {
			if err := f(e); err != nil {
				return err
			}
		}
	}
}

// openAt opens a segment for reading from offset on. Line numbers then count
// from there.
func openAt(dir string, ordinal uint64, offset int64) (*os.File, *lineReader, error) {
	f, err := os.Open(filepath.Join(dir, segmentName(ordinal)))
	if err != nil {
		return nil, nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	lines := newLineReader(f)
	lines.offset = offset
	return f, lines, nil
}
