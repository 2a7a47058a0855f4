package record

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

const (
	maxBatchBytes   = 1 << 20  // one write, unless one request alone is more
	maxPendingBytes = 16 << 20 // written and not yet synced
)

// An openSegment is the segment that is being written.
type openSegment struct {
	header header
	file   file // nil once closed
}

func (s openSegment) name() string { return segmentName(s.header.Segment) }

// A writer gives events their numbers and writes them. Everything in it but
// trouble and checkpoint belongs to whoever holds the baton. Append takes the
// baton when nobody has it, and writes its events itself; otherwise they queue
// for run, which also does what is due by the clock. work waits for the disk
// without the baton, so that writing goes on during an fsync and the next fsync
// serves all that was written meanwhile.
//
//	Append ──────► take → write(2) → answer Written
//	   └► queue ► run ┘            → waiting → work: fsync → answer Synced
type writer struct {
	cfg     Config
	disk    disk
	pace    pace
	metrics *metrics
	queue   <-chan *request
	closing <-chan struct{}
	rotates chan rotation
	jobs    chan job
	results chan job      // to whoever holds the baton and waits in settle
	baton   chan struct{} // holds a token while somebody has the baton
	nudge   chan struct{} // run has to look at the clock again

	segment      openSegment
	written      position   // after the last write
	synced       position   // after the last fsync
	pending      []*request // written, not known to be on disk: if the disk fails, they are written again where their Append had returned
	pendingBytes int64
	waiting      []*request // written, Synced, oldest first
	dirtySince   time.Time  // no later than the first write after the last fsync
	busy         bool       // a job is under way
	busySince    time.Time
	wakes        time.Time // when run looks at the clock by itself
	headAt       position  // what HEAD says
	headTime     time.Time
	headDue      bool // do not wait for its time
	fault        *fault
	buf          []byte
	batch        []*request

	checkpoint atomic.Pointer[position]
	trouble    atomic.Pointer[error] // nil while recording works
	ended      error                 // once run has returned: why something may be lost
}

// A job is something that waits for the disk: an fsync of the segment, or the
// replacement of HEAD. at is the position that it vouches for.
type job struct {
	segment openSegment
	head    bool
	at      position
	err     error
}

// A rotation asks for a new segment if the current one has events and was
// begun before the given time.
type rotation struct {
	before time.Time
	done   chan rotated // takes one answer without blocking
}

type rotated struct {
	current uint64 // the segment that is being written
	err     error
}

func newWriter(cfg Config, d disk, p pace, m *metrics, queue <-chan *request, closing <-chan struct{}) *writer {
	return &writer{
		cfg: cfg, disk: d, pace: p, metrics: m, queue: queue, closing: closing,
		rotates: make(chan rotation), jobs: make(chan job, 1), results: make(chan job),
		baton: make(chan struct{}, 1), nudge: make(chan struct{}, 1),
	}
}

// begin opens the segment to go on with, and makes everything before it
// durable: a killed process may have left it in the page cache only.
func (w *writer) begin(res resumption) (err error) {
	if res.header.Segment == 0 {
		// HEAD comes first, so that segments without it are a sign of tampering.
		if err := writeHead(w.disk, head{}); err != nil {
			return err
		}
		if err := w.startSegment(1, position{}, nil); err != nil {
			return err
		}
		w.settled(w.written)
		return nil
	}
	w.segment.header = res.header
	w.segment.file, err = w.disk.open(w.segment.name(), os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return err
	}
	if err := w.segment.file.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", w.segment.name(), err), w.segment.file.Close())
	}
	w.written = res.at
	w.settled(res.at)
	if res.header.Replica != w.cfg.Replica && res.at.seq >= res.header.Start {
		return w.startSegment(res.header.Segment+1, res.at, nil)
	}
	return nil
}

// settled notes that everything up to at is on disk.
func (w *writer) settled(at position) {
	w.synced = at
	w.checkpoint.Store(&at)
	n := 0
	for n < len(w.pending) && w.pending[n].seq <= at.seq {
		n++
	}
	w.forget(n)
}

// forget drops the oldest n pending requests.
func (w *writer) forget(n int) {
	for _, q := range w.pending[:n] {
		w.pendingBytes -= q.bytes
		q.recycle()
	}
	w.pending = slices.Delete(w.pending, 0, n)
}

// offer writes q at once, if nobody has the baton and nothing else has to be
// done first, and reports whether it took q. An answer may still be to come.
func (w *writer) offer(q *request) bool {
	select {
	case w.baton <- struct{}{}:
	default:
		return false
	}
	defer w.release()
	if w.fault != nil || w.full() || w.written.offset >= w.cfg.SegmentBytes {
		return false
	}
	w.take(q)
	w.startJob()
	return true
}

// release gives the baton back, and wakes run when something is due before it
// would look.
func (w *writer) release() {
	if due := time.Now().Add(w.sleep()); due.Before(w.wakes) {
		w.wakes = due
		w.wake()
	}
	<-w.baton
}

// wake has run look again at the queue and the clock.
func (w *writer) wake() {
	select {
	case w.nudge <- struct{}{}:
	default:
	}
}

// full reports that nothing more is written until the fsync is through.
func (w *writer) full() bool { return w.pendingBytes >= maxPendingBytes && w.fault == nil }

// run serves the queue and the clock until closing is closed.
func (w *writer) run() {
	var worker sync.WaitGroup
	worker.Go(w.work)
	defer worker.Wait()
	defer close(w.jobs)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	w.baton <- struct{}{}
	for {
		w.startJob()
		queue := w.queue
		if w.full() {
			queue = nil
		}
		sleep := w.sleep()
		w.wakes = time.Now().Add(sleep)
		<-w.baton
		timer.Reset(sleep)
		var first *request
		var rot rotation
		closing := false
		select {
		case first = <-queue:
		case <-w.nudge:
		case <-timer.C:
		case rot = <-w.rotates:
		case <-w.closing:
			closing = true
		}
		w.baton <- struct{}{}
		switch {
		case first != nil:
			w.take(first)
		case rot.done != nil:
			rot.done <- w.rotateIfOlder(rot.before)
		case closing:
			w.ended = w.end() // the baton goes with it: nothing is written any more
			return
		}
	}
}

// work does the jobs one by one, and takes their outcome unless somebody who
// has the baton waits for it.
func (w *writer) work() {
	for j := range w.jobs {
		if j.head {
			j.err = writeHead(w.disk, head{Segment: j.segment.header.Segment, Seq: j.at.seq, Hash: j.at.hash})
		} else {
			begun := time.Now()
			j.err = j.segment.file.Sync()
			w.metrics.fsync.Observe(time.Since(begun).Seconds())
		}
		select {
		case w.results <- j:
		case w.baton <- struct{}{}:
			full := w.full()
			w.finish(j)
			w.startJob()
			if full {
				w.wake() // it left the queue alone
			}
			w.release()
		}
	}
}

// startJob starts what is due, unless something is under way.
func (w *writer) startJob() {
	now := time.Now()
	switch {
	case w.busy:
	case w.fault != nil:
		if !now.Before(w.fault.retry) {
			w.mend()
		}
	case w.dirty() && (len(w.waiting) > 0 || w.pendingBytes >= maxPendingBytes || now.Sub(w.dirtySince) >= w.pace.sync):
		w.start(job{segment: w.segment, at: w.written}, now)
	case w.headBehind() && (w.headDue || now.Sub(w.headTime) >= w.pace.head):
		w.start(job{segment: w.segment, at: w.synced, head: true}, now)
	}
}

func (w *writer) start(j job, now time.Time) {
	w.busy, w.busySince = true, now
	w.jobs <- j
}

// dirty reports whether something written is not known to be on disk.
func (w *writer) dirty() bool { return w.written != w.synced }

// hasEvents reports whether the current segment is more than a header.
func (w *writer) hasEvents() bool { return w.written.seq >= w.segment.header.Start }

// headBehind reports whether HEAD could say more.
func (w *writer) headBehind() bool { return w.headAt.hash != w.synced.hash }

// sleep is how long run may sleep when nothing happens.
func (w *writer) sleep() time.Duration {
	switch {
	case w.busy:
		return time.Hour
	case w.fault != nil:
		return time.Until(w.fault.retry)
	case w.dirty():
		return time.Until(w.dirtySince.Add(w.pace.sync))
	case w.headBehind():
		return time.Until(w.headTime.Add(w.pace.head))
	}
	return time.Hour
}

// finish takes the outcome of a job.
func (w *writer) finish(j job) {
	w.busy = false
	switch {
	case j.err != nil && j.head:
		w.fail(j.err)
	case j.err != nil:
		w.fail(fmt.Errorf("sync %s: %w", j.segment.name(), j.err))
	case j.head:
		w.headAt, w.headTime, w.headDue = j.at, time.Now(), false
	default:
		w.dirtySince = w.busySince // what is dirty now was written after that
		w.settled(j.at)
		n := 0
		for n < len(w.waiting) && w.waiting[n].seq <= j.at.seq {
			w.waiting[n].answer(nil)
			n++
		}
		w.waiting = slices.Delete(w.waiting, 0, n)
		if w.fault != nil {
			w.refuseWaiting()
		}
	}
}

// take writes one request and whatever else waits, in one write.
func (w *writer) take(first *request) {
	w.gather(first)
	defer clear(w.batch)
	if w.fault == nil && w.written.offset >= w.cfg.SegmentBytes && w.hasEvents() {
		w.rotate()
	}
	if w.fault != nil {
		w.refuse(w.batch)
		return
	}
	next, events := w.compose()
	if err := writeAll(w.segment.file, w.buf); err != nil {
		w.fail(fmt.Errorf("write %s: %w", w.segment.name(), err))
		w.refuse(w.batch)
		return
	}
	if !w.dirty() {
		w.dirtySince = time.Now()
	}
	w.written = next
	w.metrics.events.Add(float64(events))
	w.metrics.bytes.Add(float64(len(w.buf)))
	for _, q := range w.batch {
		w.pendingBytes += q.bytes
		w.pending = append(w.pending, q)
		if q.level == access.Written {
			q.answer(nil)
		} else {
			w.waiting = append(w.waiting, q)
		}
	}
}

// gather collects what waits into batch, up to the size of one write.
func (w *writer) gather(first *request) {
	w.batch = append(w.batch[:0], first)
	for size := first.bytes; size < maxBatchBytes; {
		select {
		case q := <-w.queue:
			w.batch = append(w.batch, q)
			size += q.bytes
		default:
			return
		}
	}
}

// compose puts the lines of batch into buf and says where they end.
func (w *writer) compose() (next position, events int) {
	w.buf = w.buf[:0]
	next = w.written
	mark := &w.synced.seq
	for _, q := range w.batch {
		for _, payload := range q.payloads {
			next.seq++
			w.buf, next.hash = appendEvent(w.buf, next.seq, next.hash, mark, payload)
			w.buf = append(w.buf, '\n')
			mark = nil
			events++
		}
		q.seq = next.seq
	}
	next.offset += int64(len(w.buf))
	return next, events
}

func writeAll(f file, b []byte) error {
	n, err := f.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}

// end syncs and closes everything, after the last requests.
func (w *writer) end() error {
	for {
		select {
		case q := <-w.queue:
			w.take(q)
			continue
		default:
		}
		break
	}
	w.settle()
	if w.fault != nil {
		w.mend() // one last try for what Written promised
	}
	if w.fault != nil {
		return errors.Join(w.fault.cause, w.closeSegment())
	}
	err := writeHead(w.disk, head{Segment: w.segment.header.Segment, Seq: w.synced.seq, Hash: w.synced.hash})
	return errors.Join(err, syncFolder(w.disk), w.closeSegment())
}

func (w *writer) closeSegment() error {
	if w.segment.file == nil {
		return nil
	}
	f := w.segment.file
	w.segment.file = nil
	return f.Close()
}
