package record

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// startSegment begins a segment after the given position and makes it the
// current one. events are written into it at once; all of it is on disk when
// startSegment returns nil. After an error nothing has changed, except that a
// part of the file may be there.
func (w *writer) startSegment(ordinal uint64, after position, events [][]byte) error {
	h := header{
		Format: formatName, Segment: ordinal, Replica: w.cfg.Replica,
		Start: after.seq + 1, Prev: after.hash, Time: w.cfg.Clock().UTC().Round(0),
	}
	line, hash, err := sealed(h)
	if err != nil {
		return fmt.Errorf("segment header: %w", err)
	}
	buf := append(line, '\n')
	at := position{seq: after.seq, hash: hash}
	for _, payload := range events {
		at.seq++
		buf, at.hash = appendEvent(buf, at.seq, at.hash, nil, payload)
		buf = append(buf, '\n')
	}
	at.offset = int64(len(buf))
	f, err := w.createSynced(segmentName(ordinal), buf)
	if err != nil {
		return fmt.Errorf("begin %s: %w", segmentName(ordinal), err)
	}
	old := w.segment
	w.segment = openSegment{header: h, file: f}
	w.written = at
	w.settled(at)
	w.headDue = true
	if old.file != nil {
		if err := old.file.Close(); err != nil {
			w.cfg.Logger.Warn("close a finished segment", "file", old.name(), "error", err)
		}
	}
	return nil
}

// createSynced makes a new file with content, file and name both on disk. A
// file of that name can only be what an earlier attempt left.
func (w *writer) createSynced(name string, content []byte) (file, error) {
	if err := w.disk.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := w.disk.open(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND)
	if err != nil {
		return nil, err
	}
	if err = writeAll(f, content); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncFolder(w.disk)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), w.disk.remove(name))
	}
	return f, nil
}

// settle waits until everything written is on disk, or there is a fault. The
// baton stays where it is: nothing is written meanwhile.
func (w *writer) settle() {
	for {
		for w.busy {
			w.finish(<-w.results)
		}
		if w.fault != nil || !w.dirty() {
			return
		}
		w.start(job{segment: w.segment, at: w.written}, time.Now())
	}
}

// rotate ends the current segment and begins the next.
func (w *writer) rotate() {
	w.settle()
	if w.fault != nil {
		return
	}
	if err := w.startSegment(w.segment.header.Segment+1, w.synced, nil); err != nil {
		w.fail(err)
	}
}

func (w *writer) rotateIfOlder(before time.Time) rotated {
	if w.fault == nil && w.hasEvents() && w.segment.header.Time.Before(before) {
		w.rotate()
	}
	r := rotated{current: w.segment.header.Segment}
	if w.fault != nil {
		r.err = w.fault.refusal()
	}
	return r
}
