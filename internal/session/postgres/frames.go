package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
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
)

// refusedMessages are those that the protocol knows and the gateway does not
// take.
func refusedMessage(typ byte) (name string, known bool) {
	switch typ {
	case 'F':
		return "FunctionCall", true
	case 'p':
		return "PasswordMessage", true
	}
	return "", false
}

func takenMessage(typ byte) bool {
	switch typ {
	case msgQuery, msgParse, msgBind, msgDescribe, msgExecute, msgSync, msgFlush, msgClose, msgTerminate,
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
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, err
	}
	n := int64(binary.BigEndian.Uint32(head[1:])) - 4
	if n < 0 {
		return 0, 0, &frameError{sqlstateProtocol, fmt.Sprintf("invalid length of a message of type %q", head[0])}
	}
	if n > int64(limit) {
		return 0, 0, &frameError{sqlstateLimit, fmt.Sprintf("a message of type %q has %d bytes; the bound is %d", head[0], n, limit)}
	}
	return head[0], int(n), nil
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

// An inbox holds what the client has sent and the session has not yet taken,
// within a bound. Reading ahead is what lets a session that waits for a
// reviewer, or for the target, notice that its client left.
type inbox struct {
	limit   int // bytes and 256 per frame that may wait
	message int // bytes of one message

	gone chan struct{} // closed when the connection ended or broke
	left chan struct{} // closed when gone, or when Terminate was read
	full chan struct{} // gets a value when the reader has to wait for room

	mu     sync.Mutex
	queue  []frame
	held   int
	blind  bool  // the reader waits for room and sees nothing
	err    error // why no more will come
	ready  chan struct{}
	room   chan struct{}
	closed chan struct{} // the session takes no more
}

// frameCost is what a waiting frame costs besides its body.
const frameCost = 256

func newInbox(limit, message int) *inbox {
	return &inbox{
		limit: limit, message: message,
		gone: make(chan struct{}), left: make(chan struct{}), full: make(chan struct{}, 1),
		ready: make(chan struct{}, 1), room: make(chan struct{}, 1), closed: make(chan struct{}),
	}
}

// receive reads frames until the client leaves, breaks the protocol or the
// session ends the inbox. It is the only reader of r.
func (in *inbox) receive(r io.Reader) {
	defer func() {
		if fault := recover(); fault != nil {
			in.end(fmt.Errorf("panic: %v", fault), true)
		}
	}()
	for {
		f, err := in.read(r)
		if err == nil && f.typ == msgTerminate {
			in.end(io.EOF, false)
			return
		}
		if err == nil && !in.put(f) {
			err = io.ErrClosedPipe
		}
		if err != nil {
			in.end(err, true)
			return
		}
	}
}

func (in *inbox) read(r io.Reader) (frame, error) {
	typ, size, err := readHeader(r, in.message)
	if err != nil {
		return frame{}, err
	}
	if _, known := refusedMessage(typ); !known && !takenMessage(typ) {
		return frame{}, &frameError{sqlstateProtocol, fmt.Sprintf("unknown message type %q", typ)}
	}
	body, err := readBody(r, nil, size)
	return frame{typ, body}, err
}

// put waits until f has room; a frame always fits into an empty inbox. It
// reports false when the session takes no more.
func (in *inbox) put(f frame) bool {
	cost := len(f.body) + frameCost
	for {
		in.mu.Lock()
		if in.held == 0 || in.held+cost <= in.limit {
			in.queue, in.held, in.blind = append(in.queue, f), in.held+cost, false
			in.mu.Unlock()
			signal(in.ready)
			return true
		}
		in.blind = true
		in.mu.Unlock()
		signal(in.full)
		select {
		case <-in.room:
		case <-in.closed:
			return false
		}
	}
}

func (in *inbox) end(err error, gone bool) {
	in.mu.Lock()
	in.err = err
	in.mu.Unlock()
	if gone {
		close(in.gone)
	}
	close(in.left)
	signal(in.ready)
}

// next takes the next frame. After the last one it returns why there are no
// more: io.EOF when the client said goodbye.
func (in *inbox) next(ctx context.Context) (frame, error) {
	for {
		in.mu.Lock()
		if len(in.queue) > 0 {
			f := in.queue[0]
			in.queue[0] = frame{}
			in.queue, in.held = in.queue[1:], in.held-len(f.body)-frameCost
			in.mu.Unlock()
			signal(in.room)
			return f, nil
		}
		err := in.err
		in.mu.Unlock()
		if err != nil {
			return frame{}, err
		}
		select {
		case <-in.ready:
		case <-ctx.Done():
			return frame{}, context.Cause(ctx)
		}
	}
}

// waiting reports whether a frame can be had at once.
func (in *inbox) waiting() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.queue) > 0
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

// stop lets a waiting reader go. The reader itself ends with its connection.
func (in *inbox) stop() { close(in.closed) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
