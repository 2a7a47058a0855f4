package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Buffers of one connection's messages. Most are small, and most connections are
// idle: a big buffer is held only while much comes.
const (
	smallBuffer = 1 << 10
	bigBuffer   = 32 << 10
	headerSize  = 5
)

// buffers are those that nobody reads into now.
type buffers struct{ pool sync.Pool }

func (b *buffers) take() []byte {
	if buf, ok := b.pool.Get().(*[bigBuffer]byte); ok {
		return buf[:]
	}
	return make([]byte, bigBuffer)
}

func (b *buffers) put(buf []byte) { b.pool.Put((*[bigBuffer]byte)(buf)) }

// A source reads messages of the protocol. It serves one goroutine at a time.
type source struct {
	from io.Reader
	all  *buffers

	small []byte
	buf   []byte // small, or a big one
	r, w  int    // what is buffered
	much  bool   // the last read filled the buffer
}

func newSource(from io.Reader, all *buffers) *source {
	small := make([]byte, smallBuffer)
	return &source{from: from, all: all, small: small, buf: small}
}

func (s *source) buffered() int { return s.w - s.r }

// rest gives a big buffer back when nothing is in it.
func (s *source) rest() {
	if s.r == s.w && len(s.buf) == bigBuffer {
		s.all.put(s.buf)
		s.buf, s.r, s.w, s.much = s.small, 0, 0, false
	}
}

// atLeast returns when n bytes are buffered; n is at most headerSize.
func (s *source) atLeast(n int) error {
	for s.buffered() < n {
		switch {
		case s.r == s.w:
			s.r, s.w = 0, 0
			if s.much && len(s.buf) != bigBuffer {
				s.buf = s.all.take()
			} else if !s.much {
				s.rest()
			}
		case len(s.buf)-s.r < n:
			s.w = copy(s.buf, s.buf[s.r:s.w])
			s.r = 0
		}
		got, err := s.from.Read(s.buf[s.w:])
		s.much = got >= min(len(s.buf)-s.w, bigBuffer/2)
		s.w += got
		if err != nil && s.buffered() < n {
			if errors.Is(err, io.EOF) && s.buffered() > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// header reads type and body length of the next message. size is never negative
// and at most limit.
func (s *source) header(limit int) (typ byte, size int, err error) {
	if err := s.atLeast(headerSize); err != nil {
		return 0, 0, err
	}
	typ, size, err = parseHeader([headerSize]byte(s.buf[s.r:]), limit)
	if err == nil {
		s.r += headerSize
	}
	return typ, size, err
}

// body returns the n bytes that follow: buffered ones as they are, valid until
// the next read, or else in into, which is grown as they arrive.
func (s *source) body(into []byte, n int) (body, grown []byte, err error) {
	if n <= s.buffered() {
		body = s.buf[s.r : s.r+n]
		s.r += n
		return body, into, nil
	}
	into, err = readBody(s, into, n)
	return into, into, err
}

// Read implements io.Reader: what is buffered first, then without a buffer.
func (s *source) Read(b []byte) (int, error) {
	if s.r == s.w {
		return s.from.Read(b)
	}
	n := copy(b, s.buf[s.r:s.w])
	s.r += n
	return n, nil
}

// whole reports whether the next message can be read without waiting.
func (s *source) whole() bool {
	if s.buffered() < headerSize {
		return false
	}
	return s.buffered() > int(binary.BigEndian.Uint32(s.buf[s.r+1:])) // the length counts itself, not the type
}

func parseHeader(head [headerSize]byte, limit int) (typ byte, size int, err error) {
	n := int64(binary.BigEndian.Uint32(head[1:])) - 4
	if n < 0 {
		return 0, 0, &frameError{sqlstateProtocol, fmt.Sprintf("invalid length of a message of type %q", head[0])}
	}
	if n > int64(limit) {
		return 0, 0, &frameError{sqlstateLimit, fmt.Sprintf("a message of type %q has %d bytes; the bound is %d", head[0], n, limit)}
	}
	return head[0], int(n), nil
}
