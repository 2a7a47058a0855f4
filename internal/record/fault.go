package record

import (
	"fmt"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// A fault is the time from a failure of the disk until it is shown to be good
// again. Until then nothing is recorded and every Append fails.
type fault struct {
	cause   error // the latest
	first   error
	since   time.Time // by the recorder's clock, for people
	retry   time.Time // when to try next
	wait    time.Duration
	refused int64
}

func (f *fault) refusal() error { return fmt.Errorf("%w: %w", ErrUnavailable, f.cause) }

// fail begins a fault. Nobody who waits gets a nil any more, except for those
// whose fsync is under way and may yet succeed.
func (w *writer) fail(err error) {
	if w.fault == nil {
		w.fault = &fault{first: err, since: w.cfg.Clock(), wait: w.pace.retryMin}
		w.metrics.faults.Inc()
		w.metrics.available.Set(0)
		w.cfg.Logger.Error("recording stopped: nothing is let through until the disk is good again", "error", err)
	}
	w.fault.cause = err
	w.fault.retry = time.Now().Add(w.fault.wait)
	w.trouble.Store(&err)
	if !w.busy {
		w.refuseWaiting()
	}
}

func (w *writer) refuseWaiting() {
	w.refuse(w.waiting)
	clear(w.waiting)
	w.waiting = w.waiting[:0]
}

// refuse answers requests with the fault.
func (w *writer) refuse(qs []*request) {
	for _, q := range qs {
		w.fault.refused++
		w.metrics.refused.Inc()
		q.answer(w.fault.refusal())
	}
}

// mend tries to go on after a fault. What an fsync that failed has left in the
// page cache cannot be trusted, nor can the file be appended to: so the old
// segment is cut back to what was on disk, and what Written had promised since
// then is written again, to a new file, behind the last event on disk. Only
// when all that is on disk and the old segment has been read back and
// verified does recording go on. No job may be under way.
func (w *writer) mend() {
	if err := w.tryMend(); err != nil {
		w.fault.cause = err
		w.trouble.Store(&err)
		w.fault.wait = min(2*w.fault.wait, w.pace.retryMax)
		w.fault.retry = time.Now().Add(w.fault.wait)
		w.cfg.Logger.Warn("recording is still stopped", "error", err, "next", w.fault.wait)
		return
	}
	w.cfg.Logger.Info("recording goes on", "segment", w.segment.name(), "refused", w.fault.refused)
	w.fault = nil
	w.trouble.Store(nil)
	w.metrics.available.Set(1)
}

func (w *writer) tryMend() error {
	_ = w.closeSegment() // its fault is known, and it is not written any more
	old := w.segment
	if err := truncate(w.disk, old.name(), w.synced.offset); err != nil {
		return fmt.Errorf("cut %s back: %w", old.name(), err)
	}
	if err := w.verifyCurrent(); err != nil {
		return err
	}
	var events [][]byte
	for _, p := range w.pending {
		if p.level == access.Written {
			events = append(events, p.payloads...)
		}
	}
	events = append(events, w.mendedEvent(len(events)))
	if err := w.startSegment(old.header.Segment+1, w.synced, events); err != nil {
		return err
	}
	w.forget(len(w.pending))
	return nil
}

// verifyCurrent reads the current segment back and compares its end with what
// was synced.
func (w *writer) verifyCurrent() error {
	ordinal := w.segment.header.Segment
	check := &walk{dir: w.cfg.Dir, anchored: true,
		at: position{seq: w.segment.header.Start - 1, hash: w.segment.header.Prev}}
	fl, err := check.segment(ordinal)
	if err != nil {
		return fmt.Errorf("read back %s: %w", w.segment.name(), err)
	}
	if fl != nil {
		return survey{dir: w.cfg.Dir, ordinal: ordinal, last: ordinal}.diagnose(fl, check.last)
	}
	if check.at != w.synced {
		return fmt.Errorf("read back %s: it ends with event %d, but event %d was on disk",
			w.segment.name(), check.at.seq, w.synced.seq)
	}
	return nil
}

// mendedEvent tells of the fault, in the recording itself.
func (w *writer) mendedEvent(rewritten int) []byte {
	ev := ownEvent(w.cfg, "recording.mended", w.segment.name(), struct {
		Cause     string    `json:"cause"`
		Since     time.Time `json:"since"`
		Refused   int64     `json:"refused"`   // appends that failed
		Rewritten int       `json:"rewritten"` // events that were not yet on disk
	}{w.fault.first.Error(), w.fault.since.UTC(), w.fault.refused, rewritten})
	ev.Time = w.cfg.Clock().UTC().Round(0)
	payload, err := appendPayload(nil, &ev)
	if err != nil { // a few short strings and numbers
		panic("record: encode own event: " + err.Error())
	}
	return payload
}
