package record

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"chaperone.dev/chaperone/internal/access"
)

var (
	// ErrUnavailable wraps every failure to record: a bad or full disk, a
	// closed recorder, no room in time. What was to be recorded must not
	// happen. The recorder mends itself; later calls may succeed.
	ErrUnavailable = errors.New("recording unavailable")
	// ErrTooLarge says that an event, or one call's events together, exceed
	// the bounds. Repeating the call is useless.
	ErrTooLarge = errors.New("event too large to record")
	// ErrLocked says that another recorder has the folder.
	ErrLocked = errors.New("the folder is in use by another recorder")
	// ErrNoSession says that nothing of a session is in the recording.
	ErrNoSession = errors.New("no such session in the recording")
)

const (
	defaultSegmentBytes = 64 << 20
	// MaxAppendBytes bounds the events of one Append together, encoded.
	MaxAppendBytes = 16 << 20

	queueBytes    = 2 * MaxAppendBytes // encoded events that wait or are being written
	queueRequests = 1024

	// reservedAct begins the acts that only the recorder records.
	reservedAct = "recording."
)

// A Config says where and how to record.
type Config struct {
	Dir     string
	Replica string           // which replica records here; in every segment's header
	Clock   func() time.Time // nil: time.Now
	// SegmentBytes is the size from which on a new segment is begun. 0: 64 MiB.
	SegmentBytes int64
	// Retention is how long events are kept at least; Prune removes older
	// segments. 0: forever.
	Retention  time.Duration
	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: none
}

// A pace is how often and how long; only tests have another than the usual.
type pace struct {
	sync     time.Duration // from a write to the start of its fsync, at most
	head     time.Duration // between two replacements of HEAD
	patience time.Duration // of one Append
	retryMin time.Duration // from a fault to the first attempt to go on
	retryMax time.Duration // between two attempts, at most
}

// usualPace leaves half of the 100 ms that Written promises to the fsync.
var usualPace = pace{
	sync: 50 * time.Millisecond, head: time.Second, patience: 10 * time.Second,
	retryMin: 100 * time.Millisecond, retryMax: 5 * time.Second,
}

// A Recorder appends events to the recording of one replica. All methods are
// safe for concurrent use.
type Recorder struct {
	cfg      Config
	patient  time.Duration
	lock     *os.File
	writer   *writer
	reader   *Reader
	requests requests
	queue    chan *request
	closing  chan struct{} // closed by Close
	stopped  chan struct{} // closed when the writer has ended
	close    func() error
	pruning  chan struct{} // holds a token while Prune runs

	strangers *strangers
}

// Open takes the folder of cfg for this process alone, recovers what a crash
// left there and goes on where it ended. What had to be cut off the end is
// kept in a file beside it and told by an event. Open fails with a *Damage
// when anything else is wrong with the recording, and with ErrLocked when
// another recorder is at work. The caller must Close the recorder.
func Open(cfg Config) (*Recorder, error) { return open(cfg, folder(cfg.Dir), usualPace) }

func open(cfg Config, d disk, p pace) (*Recorder, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	lock, err := lockFolder(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("recording %s: %w", cfg.Dir, err)
	}
	r, err := start(cfg, d, p, lock)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("recording %s: %w", cfg.Dir, err), lock.Close())
	}
	return r, nil
}

func (c *Config) complete() error {
	switch {
	case c.Dir == "":
		return errors.New("recording: no folder given")
	case c.SegmentBytes < 0 || c.Retention < 0:
		return errors.New("recording: negative segment size or retention")
	case len(c.Replica) > maxReplica:
		return fmt.Errorf("recording: replica name of %d bytes, at most %d", len(c.Replica), maxReplica)
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = defaultSegmentBytes
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Replica = strings.ToValidUTF8(c.Replica, "?")
	return nil
}

// start reopens the recording and starts the writer.
func start(cfg Config, d disk, p pace, lock *os.File) (*Recorder, error) {
	res, err := reopen(cfg.Dir, d)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	r := &Recorder{
		cfg: cfg, patient: p.patience, lock: lock,
		requests: requests{room: semaphore.NewWeighted(queueBytes)},
		queue:    make(chan *request, queueRequests),
		closing:  make(chan struct{}),
		stopped:  make(chan struct{}),
		pruning:  make(chan struct{}, 1),
		reader:   newReader(cfg.Dir),

		strangers: newStrangers(),
	}
	r.writer = newWriter(cfg, d, p, m, r.queue, r.closing)
	r.close = sync.OnceValue(r.shut)
	if err := r.writer.begin(res); err != nil {
		m.unregister(cfg.Registerer)
		return nil, err
	}
	r.writer.startJob() // HEAD, before the first event
	go func() {
		defer close(r.stopped)
		r.writer.run()
	}()
	if res.cut != nil {
		cfg.Logger.Warn("cut a torn end off the recording", "file", res.cut.File, "line", res.cut.Line,
			"event", res.cut.Event, "bytes", res.cut.Bytes, "kept", res.cut.Kept)
		err := r.append(context.Background(), access.Synced, r.own("recording.cut", res.cut.File, res.cut))
		if err != nil {
			return nil, errors.Join(err, r.shut())
		}
	}
	return r, nil
}

// own makes an event of the recorder itself.
func (r *Recorder) own(act, on string, input any) access.Event {
	return ownEvent(r.cfg, act, on, input)
}

func ownEvent(cfg Config, act, on string, input any) access.Event {
	b, err := encodeAny(input)
	if err != nil { // structs of strings, numbers and times
		panic("record: own event: " + err.Error())
	}
	return access.Event{Admin: &access.Administrative{
		Actor: access.Principal{Issuer: "chaperone", Subject: cfg.Replica}, Act: act, On: on, Input: b,
	}}
}

// Append records evs, in order and with nothing between them, with the
// durability d. When it returns nil they are recorded so; after an error the
// action that they tell of must not happen, though the events may still be
// found in the recording. It keeps nothing of evs. It blocks while the disk is
// busy, until ctx ends or, without a deadline, for ten seconds; a write(2) of its
// own that hangs holds it longer. A zero Time becomes now; Seq is given here.
//
// One refusal by itself of somebody who proved no identity is recorded only
// while there are not too many: beyond 500, and 10 more a second, they are
// counted, and a "recording.strangers" event tells how many before the next
// that is recorded, or when the recorder closes.
func (r *Recorder) Append(ctx context.Context, d access.Durability, evs ...access.Event) error {
	for i := range evs {
		if admin := evs[i].Admin; admin != nil && strings.HasPrefix(admin.Act, reservedAct) {
			return fmt.Errorf("%q: only the recorder itself records acts that begin with %q", admin.Act, reservedAct)
		}
		if evs[i].Type() == "" {
			return errors.New("an event without payload cannot be recorded")
		}
	}
	omitted, evs := r.omit(evs)
	if omitted {
		return r.ready(ctx)
	}
	return r.append(ctx, d, evs...)
}

func (r *Recorder) append(ctx context.Context, d access.Durability, evs ...access.Event) error {
	if err := r.ready(ctx); err != nil || len(evs) == 0 {
		return err
	}
	req, err := r.encode(d, evs)
	if err != nil {
		return err
	}
	if !r.requests.room.TryAcquire(req.bytes) {
		if err := r.waitForRoom(ctx, req.bytes); err != nil {
			return err
		}
	}
	taken := r.writer.offer(req)
	if taken && d == access.Written {
		return <-req.done // is there already
	}
	patience := time.NewTimer(r.patient)
	defer patience.Stop()
	if !taken {
		if err := r.enqueue(ctx, req, patience.C); err != nil {
			return err
		}
	}
	return r.await(ctx, req, patience.C)
}

// await returns what becomes of a request that the writer has.
func (r *Recorder) await(ctx context.Context, req *request, patience <-chan time.Time) error {
	select {
	case err := <-req.done:
		return err
	case <-r.stopped:
		select {
		case err := <-req.done:
			return err
		default:
			return fmt.Errorf("%w: the recorder is closed", ErrUnavailable)
		}
	case <-ctx.Done():
		return fmt.Errorf("%w: not recorded in time: %w", ErrUnavailable, context.Cause(ctx))
	case <-patience:
		return fmt.Errorf("%w: the disk did not answer within %v", ErrUnavailable, r.patient)
	}
}

// ready fails at once when recording cannot succeed.
func (r *Recorder) ready(ctx context.Context) error {
	select {
	case <-r.closing:
		return fmt.Errorf("%w: the recorder is closed", ErrUnavailable)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	default:
		return r.Healthy()
	}
}

// encode makes the request of one Append.
func (r *Recorder) encode(d access.Durability, evs []access.Event) (*request, error) {
	req := r.requests.make(d, len(evs))
	now := r.cfg.Clock()
	for _, ev := range evs {
		if ev.Time.IsZero() {
			ev.Time = now
		}
		ev.Time = ev.Time.UTC().Round(0)
		if err := req.add(&ev); err != nil {
			req.recycle()
			return nil, fmt.Errorf("record %s event: %w", ev.Type(), err)
		}
	}
	if req.bytes > MaxAppendBytes {
		req.recycle()
		return nil, fmt.Errorf("%w: %d bytes in one call, at most %d", ErrTooLarge, req.bytes, MaxAppendBytes)
	}
	return req, nil
}

func (r *Recorder) waitForRoom(ctx context.Context, bytes int64) error {
	waiting, cancel := context.WithTimeoutCause(ctx, r.patient,
		fmt.Errorf("the disk made no room within %v", r.patient))
	defer cancel()
	if err := r.requests.room.Acquire(waiting, bytes); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(waiting))
	}
	return nil
}

// enqueue hands req, which has room, to the writer, which then owns it.
func (r *Recorder) enqueue(ctx context.Context, req *request, patience <-chan time.Time) error {
	select {
	case r.queue <- req:
		return nil
	case <-r.closing:
	case <-ctx.Done():
	case <-patience:
	}
	r.requests.room.Release(req.bytes)
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
	return fmt.Errorf("%w: closed or too busy", ErrUnavailable)
}

// Healthy returns nil while events can be recorded, else why they cannot.
func (r *Recorder) Healthy() error {
	if cause := r.writer.trouble.Load(); cause != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, *cause)
	}
	return nil
}

// Checkpoint returns the last event that is on disk and the hash of the last
// line that is: the place up to which the recording can be vouched for.
func (r *Recorder) Checkpoint() (seq uint64, hash Hash) {
	at := r.writer.checkpoint.Load()
	return at.seq, at.hash
}

// Reader reads this recording while it grows. It stays good after Close.
func (r *Recorder) Reader() *Reader { return r.reader }

// Close records what was already handed over, syncs it and gives the folder
// up. It returns an error when something that Append called Written may be
// lost. Later calls return the same.
func (r *Recorder) Close() error { return r.close() }

func (r *Recorder) shut() error {
	farewell := r.farewell()
	close(r.closing)
	<-r.stopped
	r.writer.metrics.unregister(r.cfg.Registerer)
	if err := errors.Join(farewell, r.writer.ended, r.lock.Close()); err != nil {
		return fmt.Errorf("close recording: %w", err)
	}
	return nil
}
