package kube

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"unicode/utf8"
)

// Opcodes of RFC 6455, section 5.2.
const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

const (
	maxFrame   = 16 << 20 // of a WebSocket; clients send at most what they were given to write at once
	maxControl = 125      // RFC 6455, section 5.5
	chunk      = 32 << 10 // how much is passed on at a time
)

// errProtocol is a frame that no honest peer sends.
var errProtocol = errors.New("protocol error")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errProtocol, fmt.Sprintf(format, args...))
}

// A piece is part of a message, or a whole control frame. Its bytes are valid
// until the next one is read.
type piece struct {
	opcode byte // opBinary for every message
	first  bool // it begins a message
	last   bool // it ends one
	bytes  []byte
}

// A wsReader takes WebSocket frames apart, of which it never holds more than a
// chunk.
type wsReader struct {
	from   io.Reader
	masked bool // as a client's are

	inMessage bool // a message has begun and not ended
	begun     bool // its first piece was returned
	final     bool // the frame that is being read is its last
	left      uint64
	key       [4]byte
	at        int // in key
	buffer    [chunk]byte
}

// next returns the next piece. io.EOF means that the peer ended the connection
// between two frames, which it should not.
func (r *wsReader) next() (piece, error) {
	for {
		if r.left > 0 {
			return r.payload()
		}
		header, err := r.header()
		if err != nil {
			return piece{}, err
		}
		if header.opcode >= opClose {
			return r.control(header)
		}
		r.left, r.final = header.length, header.final
		if !r.inMessage {
			r.begun = false
		}
		r.inMessage = !header.final
		if r.left == 0 && header.final { // ends a message without a byte
			p := piece{opcode: opBinary, first: !r.begun, last: true}
			return p, nil
		}
	}
}

type wsHeader struct {
	opcode byte
	final  bool
	length uint64
}

func (r *wsReader) header() (h wsHeader, err error) {
	var b [8]byte
	if _, err := io.ReadFull(r.from, b[:2]); err != nil {
		return h, err // io.EOF between frames
	}
	h.final, h.opcode, h.length = b[0]&0x80 != 0, b[0]&0x0f, uint64(b[1]&0x7f)
	switch {
	case b[0]&0x70 != 0:
		return h, broken("a frame with an extension")
	case (b[1]&0x80 != 0) != r.masked:
		return h, broken("a frame that is masked, or not, against its side")
	case !slices.Contains([]byte{opContinuation, opText, opBinary, opClose, opPing, opPong}, h.opcode):
		return h, broken("opcode %d", h.opcode)
	case h.opcode >= opClose && (!h.final || h.length > maxControl):
		return h, broken("a control frame in parts, or too long")
	case h.opcode < opClose && (h.opcode == opContinuation) != r.inMessage:
		return h, broken("a message within another, or one without a beginning")
	}
	size := map[uint64]int{126: 2, 127: 8}[h.length]
	if size > 0 {
		if _, err := io.ReadFull(r.from, b[8-size:]); err != nil {
			return h, cut(err)
		}
		clear(b[:8-size])
		if h.length = binary.BigEndian.Uint64(b[:]); h.length > maxFrame {
			return h, broken("a frame of %d bytes", h.length)
		}
	}
	r.at, r.key = 0, [4]byte{}
	if r.masked {
		if _, err := io.ReadFull(r.from, r.key[:]); err != nil {
			return h, cut(err)
		}
	}
	return h, nil
}

// payload reads on in the frame of a message.
func (r *wsReader) payload() (piece, error) {
	n, err := r.from.Read(r.buffer[:min(uint64(chunk), r.left)])
	if n == 0 && err != nil {
		return piece{}, cut(err)
	}
	r.left -= uint64(n)
	p := piece{opcode: opBinary, first: !r.begun, last: r.final && r.left == 0, bytes: r.unmask(r.buffer[:n])}
	r.begun = true
	return p, nil
}

func (r *wsReader) control(h wsHeader) (piece, error) {
	b := make([]byte, h.length)
	if _, err := io.ReadFull(r.from, b); err != nil {
		return piece{}, cut(err)
	}
	p := piece{opcode: h.opcode, first: true, last: true, bytes: r.unmask(b)}
	if h.opcode == opClose {
		return p, closeFault(p.bytes)
	}
	return p, nil
}

// closeFault says what is wrong with the body of a close frame.
func closeFault(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if len(b) == 1 || !utf8.Valid(b[2:]) {
		return broken("a close frame that cannot be read")
	}
	code := binary.BigEndian.Uint16(b)
	if code < 1000 || code >= 5000 || code >= 1004 && code <= 1006 || code >= 1015 && code < 3000 {
		return broken("close code %d", code)
	}
	return nil
}

func (r *wsReader) unmask(b []byte) []byte {
	if r.masked {
		for i := range b {
			b[i] ^= r.key[r.at&3]
			r.at++
		}
	}
	return b
}

// cut is the error of a stream that ended within a frame.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A wsWriter writes whole frames. It is safe for concurrent use.
type wsWriter struct {
	masked bool // as a client does

	mu sync.Mutex
	to io.Writer
}

// frame writes one frame: the parts of its payload one after the other.
func (w *wsWriter) frame(opcode byte, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, 0, n+14)
	b = append(b, 0x80|opcode)
	mask := byte(0)
	if w.masked {
		mask = 0x80
	}
	switch {
	case n < 126:
		b = append(b, mask|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|127), uint64(n))
	}
	var key [4]byte
	if w.masked {
		_, _ = rand.Read(key[:]) // never fails
		b = append(b, key[:]...)
	}
	body := len(b)
	for _, p := range parts {
		b = append(b, p...)
	}
	for i := range b[body:] {
		b[body+i] ^= key[i&3]
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.to.Write(b)
	return err
}

// close writes a close frame with a code and a reason, which is cut to fit.
func (w *wsWriter) close(code uint16, reason string) error {
	if len(reason) > maxControl-2 {
		reason = reason[:maxControl-2]
		for !utf8.ValidString(reason) {
			reason = reason[:len(reason)-1]
		}
	}
	return w.frame(opClose, binary.BigEndian.AppendUint16(nil, code), []byte(reason))
}
