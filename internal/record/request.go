package record

import (
	"sync"

	"golang.org/x/sync/semaphore"

	"chaperone.dev/chaperone/internal/access"
)

// requests is what requests share: the room for their bytes, and the buffers of
// those that are on disk.
type requests struct {
	room    *semaphore.Weighted
	buffers sync.Pool // of *[]byte
}

// A request is the events of one Append on their way to the disk.
type request struct {
	of       *requests
	buf      []byte   // of the payloads
	payloads [][]byte // encoded events
	bytes    int64
	level    access.Durability
	seq      uint64     // of its last event, once written
	done     chan error // takes exactly one answer without blocking
}

func (rs *requests) make(level access.Durability, events int) *request {
	q := &request{of: rs, payloads: make([][]byte, 0, events), level: level, done: make(chan error, 1)}
	if buf, ok := rs.buffers.Get().(*[]byte); ok {
		q.buf = (*buf)[:0]
	}
	return q
}

// add encodes one more event.
func (q *request) add(ev *access.Event) error {
	start := len(q.buf)
	buf, err := appendPayload(q.buf, ev)
	if err != nil {
		return err
	}
	q.buf = buf
	q.payloads = append(q.payloads, buf[start:]) // stays good when the next one moves the buffer
	q.bytes += int64(len(buf) - start)
	return nil
}

// answer ends the request for whoever waits for it.
func (q *request) answer(err error) {
	q.of.room.Release(q.bytes)
	q.done <- err
}

// recycle gives the payloads up: nobody reads them any more.
func (q *request) recycle() {
	const keep = 64 << 10
	if buf := q.buf; cap(buf) <= keep {
		q.of.buffers.Put(&buf)
	}
	q.buf, q.payloads = nil, nil
}
