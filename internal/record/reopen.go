package record

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// openVerifyBytes bounds how much of a recording is verified before it is
// continued: the newest segments, at least two. Verify reads all of it.
const openVerifyBytes = 256 << 20

// A resumption is where a recorder goes on: after at in the segment that
// header begins. The zero header says that there is no segment yet.
type resumption struct {
	header header
	at     position
	cut    *cut
}

// A cut tells what recovery took off the end of a recording.
type cut struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Event  uint64 `json:"event"` // that would have been next
	Offset int64  `json:"offset"`
	Bytes  int64  `json:"bytes"`
	Kept   string `json:"kept"` // the file that holds them now
}

// reopen finds the end of the recording in dir. What a crash may have left
// after the last whole line is set aside; any other fault is a *Damage.
func reopen(dir string, d disk) (resumption, error) {
	ordinals, err := segments(dir)
	if err != nil {
		return resumption{}, err
	}
	h, ok, err := readHead(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(ordinals) == 0:
		return resumption{}, nil
	case errors.Is(err, fs.ErrNotExist):
		return resumption{}, &Damage{File: headName, Seq: 1, What: Deleted, Detail: "there are segments but no " + headName}
	case err != nil:
		return resumption{}, err
	case !ok:
		return resumption{}, &Damage{File: headName, Seq: 1, What: Changed, Detail: "it is not as it was written"}
	case len(ordinals) == 0 && h.Segment > 0:
		return resumption{}, &Damage{File: segmentName(h.Segment), Seq: 1, What: Deleted, Detail: "there are no segments"}
	case len(ordinals) == 0:
		return resumption{}, nil
	}
	ordinals, err = newest(dir, ordinals, h.Segment)
	if err != nil {
		return resumption{}, err
	}
	return resume(dir, d, ordinals, h)
}

// newest returns the end of ordinals that is to be verified: at least from
// segment oldest on.
func newest(dir string, ordinals []uint64, oldest uint64) ([]uint64, error) {
	var total int64
	for i := len(ordinals) - 1; i >= 0; i-- {
		info, err := os.Stat(filepath.Join(dir, segmentName(ordinals[i])))
		if err != nil {
			return nil, err
		}
		total += info.Size()
		if total > openVerifyBytes && i < len(ordinals)-2 && ordinals[i] < oldest {
			return ordinals[i+1:], nil
		}
	}
	return ordinals, nil
}

// resume walks the given segments and says where to go on.
func resume(dir string, d disk, ordinals []uint64, h head) (resumption, error) {
	headSeen := h.Segment == 0
	w := &walk{dir: dir, anchored: ordinals[0] == 1}
	w.reached = func() { headSeen = headSeen || w.at.seq == h.Seq && w.at.hash == h.Hash }
	s := survey{dir: dir, last: ordinals[len(ordinals)-1], head: h, headOK: true}
	res := resumption{}
	for s.ordinal = ordinals[0]; s.ordinal <= s.last; s.ordinal++ {
		fl, err := w.segment(s.ordinal)
		if errors.Is(err, fs.ErrNotExist) {
			fl, err = &flaw{kind: missingFile, at: spot{segmentName(s.ordinal), 0, w.at.seq + 1}}, nil
		}
		switch {
		case err != nil:
			return resumption{}, err
		case fl == nil:
		case s.ordinal < s.last:
			return resumption{}, s.diagnose(fl, w.last)
		default:
			if res.cut, err = s.cutTail(d, fl, w.last); err != nil {
				return resumption{}, err
			}
		}
	}
	if !headSeen {
		return resumption{}, &Damage{File: w.last.file, Line: w.last.line, Seq: h.Seq, What: Truncated,
			Detail: fmt.Sprintf("%s says that event %d was on disk, but the recording ends with event %d or is another",
				headName, h.Seq, w.at.seq)}
	}
	res.header, res.at = w.header, w.at
	return res, nil
}

// cutTail sets aside the end of the last segment from the flaw on, if a crash
// can have left it so. It never cuts what was known to be on disk.
func (s survey) cutTail(d disk, fl *flaw, last spot) (*cut, error) {
	torn := fl.kind == unfinished || fl.kind == unreadable || fl.kind == headerless
	if !torn || fl.at.seq <= s.head.Seq || fl.offset == 0 && s.head.Segment >= s.ordinal {
		return nil, s.diagnose(fl, last)
	}
	err := eachEntry(s.dir, s.ordinal, fl.offset, func(e entry) error {
		if e.synced >= fl.at.seq || fl.offset == 0 {
			return s.diagnose(fl, last)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c := &cut{File: fl.at.file, Line: fl.at.line, Event: fl.at.seq, Offset: fl.offset}
	if err := s.setAside(d, c); err != nil {
		return nil, fmt.Errorf("set aside the torn end of %s: %w", c.File, err)
	}
	return c, nil
}

// setAside copies the end of a segment into a file of its own, and then takes
// it off the segment. A segment without a header goes as a whole.
func (s survey) setAside(d disk, c *cut) error {
	from, _, err := openAt(s.dir, s.ordinal, c.Offset)
	if err != nil {
		return err
	}
	defer from.Close()
	if c.Kept, c.Bytes, err = keep(d, fmt.Sprintf("%s.%d", c.File, c.Offset), from); err != nil {
		return err
	}
	if err := syncFolder(d); err != nil {
		return err
	}
	if c.Offset == 0 {
		return errors.Join(d.remove(c.File), syncFolder(d))
	}
	return truncate(d, c.File, c.Offset)
}

// keep copies r into a new file, synced, and returns its name.
func keep(d disk, stem string, r io.Reader) (string, int64, error) {
	name := stem + tornEnd
	to, err := d.open(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	for i := 1; errors.Is(err, fs.ErrExist) && i < 100; i++ {
		name = fmt.Sprintf("%s.%d%s", stem, i, tornEnd)
		to, err = d.open(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	}
	if err != nil {
		return "", 0, err
	}
	n, err := io.Copy(to, r)
	if err == nil {
		err = to.Sync()
	}
	return name, n, errors.Join(err, to.Close())
}

// truncate cuts a file to size, on disk when it returns nil.
func truncate(d disk, name string, size int64) error {
	f, err := d.open(name, os.O_WRONLY)
	if err != nil {
		return err
	}
	if err = f.Truncate(size); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
