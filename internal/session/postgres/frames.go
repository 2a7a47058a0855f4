package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// A frame is one message of the protocol: type, and body without the length.
type frame struct {
	typ  byte
	body []byte
}

// The frontend messages that a session takes after startup (PostgreSQL
// manual, "Message Formats"). Whatever is not here is refused by name or ends
// the session.
const (
	msgQuery     = 'Q'
	msgParse     = 'P'
	msgBind      = 'B'
	msgDescribe  = 'D'
	msgExecute   = 'E'
	msgSync      = 'S'
	msgFlush     = 'H'
	msgClose     = 'C'
	msgTerminate = 'X'
	msgCall      = 'F'
	msgPassword  = 'p' // known, and refused after startup
)

func takenMessage(typ byte) bool {
	switch typ {
	case msgQuery, msgParse, msgBind, msgDescribe, msgExecute, msgSync, msgFlush, msgClose, msgTerminate, msgCall, msgPassword,
		msgCopyData, msgCopyDone, msgCopyFail:
		return true
	}
	return false
}

// A frameError is a message that breaks the protocol or a bound. It ends the
// session: what follows it cannot be told apart.
type frameError struct {
	sqlstate string
	text     string
}

func (e *frameError) Error() string { return e.text }

func malformed(name string) error {
	return &frameError{sqlstateProtocol, "invalid " + name + " message"}
}

// readHeader reads type and body length of the next frame. size is never
// negative and at most limit.
func readHeader(r io.Reader, limit int) (typ byte, size int, err error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, err
	}
	return parseHeader(head, limit)
}

// bodyStep bounds what is allocated before the bytes are there.
const bodyStep = 64 << 10

// readBody reads n bytes into buf, which is grown as they arrive.
func readBody(r io.Reader, buf []byte, n int) ([]byte, error) {
	buf = buf[:0]
	for len(buf) < n {
		step := min(n-len(buf), bodyStep)
		start := len(buf)
		if cap(buf)-start < step {
			grown := make([]byte, start, min(n, max(2*cap(buf), start+step)))
			copy(grown, buf)
			buf = grown
		}
		buf = buf[:start+step]
		if _, err := io.ReadFull(r, buf[start:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return buf, nil
}

// An inbox is the client's side. The session reads from it what it takes next;
// while it is at work on something that takes longer, a reader of the inbox
// reads ahead, within a bound. That is what lets a session that waits for a
// reviewer, or for the target, notice that its client left. Short statements are
// done before, and cost no second goroutine.
type inbox struct {
	limit   int // bytes and 256 per frame that may wait
	message int // bytes of one message
	src     *source
	scratch []byte // of the frame that the session has

	gone chan struct{} // closed when the connection ended or broke
	left chan struct{} // closed when gone, or when Terminate was read
	full chan struct{} // gets a value when the reader has to wait for room

	readers sync.WaitGroup
	leave   func() // called once, when gone is closed; guarded by mu
	look    *time.Timer

	mu      sync.Mutex
	queue   []frame
	held    int
	blind   bool  // the reader waits for room and sees nothing
	reading bool  // the reader has src, otherwise the session
	pinned  bool  // the reader keeps it
	busy    bool  // the session has a frame and has not asked for the next
	looking bool  // look is set
	turn    int   // counts the frames taken
	seen    int   // turn when look last looked
	err     error // why no more will come
	ready   chan struct{}
	room    chan struct{}
	closed  chan struct{} // the session takes no more
}

// frameCost is what a waiting frame costs besides its body.
const frameCost = 256

// lookEvery is how often a session at work is looked at: one that was at the
// same message the time before has its client read ahead.
const lookEvery = 10 * time.Millisecond

func newInbox(src *source, limit, message int) *inbox {
	in := &inbox{
		limit: limit, message: message, src: src,
		gone: make(chan struct{}), left: make(chan struct{}), full: make(chan struct{}, 1),
		ready: make(chan struct{}, 1), room: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	in.look = time.AfterFunc(time.Hour, in.lookAtWork)
	in.look.Stop()
	return in
}

// lookAtWork has the client read ahead when the session is still at what it was
// at the last time.
func (in *inbox) lookAtWork() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.looking = false
	if !in.busy || in.reading || in.err != nil {
		return
	}
	if in.turn == in.seen {
		in.readAhead()
		return
	}
	in.seen, in.looking = in.turn, true
	in.look.Reset(lookEvery)
}

// readAhead starts the reader; mu is held, and the session is not reading.
func (in *inbox) readAhead() {
	if in.reading || in.err != nil {
		return
	}
	select {
	case <-in.closed:
		return
	default:
	}
	in.reading = true
	in.readers.Go(in.receive)
}

// pin has the client read ahead from now on, until unpin.
func (in *inbox) pin() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.pinned = true
	in.readAhead()
}

func (in *inbox) unpin() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.pinned = false
}

// receive reads frames until the session, back at the inbox, can do so itself,
// the client leaves or breaks the protocol, or the session ends.
func (in *inbox) receive() {
	defer func() {
		if fault := recover(); fault != nil {
			in.end(fmt.Errorf("panic: %v", fault))
		}
	}()
	for {
		f, err := in.read(nil)
		if err != nil || f.typ == msgTerminate {
			in.end(err)
			return
		}
		more, put := in.put(f)
		if !put {
			in.end(io.ErrClosedPipe)
		}
		if !more {
			return
		}
	}
}

// read takes the next frame off the connection, its body into buf or a bigger
// one.
func (in *inbox) read(buf []byte) (frame, error) {
	typ, size, err := in.src.header(in.message)
	if err != nil {
		return frame{}, err
	}
	if !takenMessage(typ) {
		return frame{}, &frameError{sqlstateProtocol, fmt.Sprintf("unknown message type %q", typ)}
	}
	body, err := readBody(in.src, buf, size)
	return frame{typ, body}, err
}

// put waits until f has room; a frame always fits into an empty inbox. It
// reports false when the session takes no more, and whether to read more.
func (in *inbox) put(f frame) (more, put bool) {
	cost := len(f.body) + frameCost
	for {
		in.mu.Lock()
		if in.held == 0 || in.held+cost <= in.limit {
			in.queue, in.held, in.blind = append(in.queue, f), in.held+cost, false
			more = in.busy || in.pinned
			in.reading = more
			in.mu.Unlock()
			signal(in.ready)
			return more, true
		}
		in.blind = true
		in.mu.Unlock()
		signal(in.full)
		select {
		case <-in.room:
		case <-in.closed:
			return false, false
		}
	}
}

// end notes why no more comes: nil is the client's goodbye. That a deadline was
// set to stop reading is not the client's doing.
func (in *inbox) end(err error) {
	in.mu.Lock()
	in.err = err
	if err == nil {
		in.err = io.EOF
	}
	in.mu.Unlock()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		if err != nil {
			close(in.gone)
			in.mu.Lock()
			if in.leave != nil {
				in.leave()
			}
			in.mu.Unlock()
		}
		close(in.left)
	}
	signal(in.ready)
}

// onGone has leave called when the connection ends or breaks. After it has
// returned an earlier one is not called any more.
func (in *inbox) onGone(leave func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.leave = leave
}

// next takes the next frame, whose body is good until the frame after it is
// taken. After the last one it returns why there are no more: io.EOF when the
// client said goodbye.
func (in *inbox) next(ctx context.Context) (frame, error) {
	for {
		in.mu.Lock()
		in.busy = false
		if len(in.queue) > 0 {
			f := in.queue[0]
			in.queue[0] = frame{}
			in.queue, in.held = in.queue[1:], in.held-len(f.body)-frameCost
			in.taken()
			in.mu.Unlock()
			signal(in.room)
			return f, nil
		}
		err, reading := in.err, in.reading
		in.mu.Unlock()
		if err != nil {
			return frame{}, err
		}
		if !reading {
			return in.readNext()
		}
		select {
		case <-in.ready:
		case <-ctx.Done():
			return frame{}, context.Cause(ctx)
		}
	}
}

// readNext is next for a session that reads by itself. Whoever ends the session
// must make the connection fail.
func (in *inbox) readNext() (frame, error) {
	const keep = 4 << 10
	if cap(in.scratch) > keep {
		in.scratch = nil
	}
	f, err := in.read(in.scratch)
	if err != nil || f.typ == msgTerminate {
		in.end(err)
		return frame{}, in.err
	}
	in.scratch = f.body
	in.mu.Lock()
	in.taken()
	in.mu.Unlock()
	return f, nil
}

// taken notes that the session is at work on a frame; mu is held.
func (in *inbox) taken() {
	in.busy = true
	in.turn++
	if !in.looking && !in.reading {
		in.looking = true
		in.look.Reset(lookEvery)
	}
}

// waiting reports whether a frame can be had at once.
func (in *inbox) waiting() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.queue) > 0 || !in.reading && in.src.whole()
}

// arrived reports whether next has something to say at once.
func (in *inbox) arrived() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.queue) > 0 || in.err != nil
}

// isGone reports whether nobody reads answers any more.
func (in *inbox) isGone() bool {
	select {
	case <-in.gone:
		return true
	default:
		return false
	}
}

// crowded reports whether so much waits that the reader no longer sees the
// client leave.
func (in *inbox) crowded() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.blind
}

// stop lets a waiting reader go. A reading one ends with its connection.
func (in *inbox) stop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.look.Stop()
	close(in.closed)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
