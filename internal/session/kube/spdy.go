package kube

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"io"
	"sync"
)

// Control frames of SPDY/3.1.
const (
	synStream    = 1
	synReply     = 2
	rstStream    = 3
	settings     = 4
	ping         = 6
	goAway       = 7
	windowUpdate = 9

	spdyVersion = 3
	flagFin     = 1
	cancelled   = 5 // status of RST_STREAM
)

// Bounds on what a frame may say about a stream.
const (
	maxControlFrame = 16 << 10
	maxHeaders      = 16
	maxHeaderName   = 64
	maxHeaderValue  = 1 << 10
)

// A spdyFrame is the head of a frame. The stream is that of a data frame.
type spdyFrame struct {
	raw     [8]byte
	control bool
	kind    uint16
	flags   byte
	stream  uint32
	length  int
}

// A spdyReader takes frames apart. What header returned is to be read by body or
// piece before the next header.
type spdyReader struct {
	from    io.Reader
	left    int // of a data frame
	buffer  [chunk]byte
	pending bytes.Buffer // compressed headers that are to be read
	headers io.Reader    // zlib, of all frames of this side
}

func (r *spdyReader) header() (f spdyFrame, err error) {
	if n, err := io.ReadFull(r.from, f.raw[:]); err != nil {
		if n > 0 {
			err = io.ErrUnexpectedEOF
		}
		return f, err
	}
	first := binary.BigEndian.Uint32(f.raw[:4])
	f.control, f.flags = first>>31 == 1, f.raw[4]
	f.length = int(binary.BigEndian.Uint32(f.raw[4:]) & 0xffffff)
	if !f.control {
		f.stream, r.left = first, f.length
		if f.flags&^flagFin != 0 {
			return f, broken("a data frame with flags %#x", f.flags)
		}
		return f, nil
	}
	f.kind = uint16(first)
	switch {
	case first>>16&0x7fff != spdyVersion:
		return f, broken("a frame of another version of SPDY")
	case f.length > maxControlFrame:
		return f, broken("a control frame of %d bytes", f.length)
	}
	return f, nil
}

// body reads a control frame.
func (r *spdyReader) body(f spdyFrame) ([]byte, error) {
	b := make([]byte, f.length)
	if _, err := io.ReadFull(r.from, b); err != nil {
		return nil, cut(err)
	}
	least := map[uint16]int{synStream: 10, synReply: 4, rstStream: 8, ping: 4, goAway: 8, settings: 4, windowUpdate: 8}
	n, known := least[f.kind]
	exact := f.kind == rstStream || f.kind == ping || f.kind == goAway || f.kind == windowUpdate
	if !known || len(b) < n || exact && len(b) != n {
		return nil, broken("a control frame of kind %d and %d bytes", f.kind, f.length)
	}
	return b, nil
}

// piece reads on in a data frame; nil is its end. The bytes are valid until the
// next call.
func (r *spdyReader) piece() ([]byte, error) {
	if r.left == 0 {
		return nil, nil
	}
	n, err := r.from.Read(r.buffer[:min(chunk, r.left)])
	if n == 0 && err != nil {
		return nil, cut(err)
	}
	r.left -= n
	return r.buffer[:n], nil
}

// block reads the headers of a stream. All of the block must belong to them, so
// that both sides read the next one alike.
func (r *spdyReader) block(compressed []byte) (map[string]string, error) {
	r.pending.Write(compressed)
	if r.headers == nil {
		z, err := zlib.NewReaderDict(&r.pending, dictionary())
		if err != nil {
			return nil, broken("headers that are not compressed as they should be")
		}
		r.headers = z
	}
	n, err := r.number(maxHeaders)
	if err != nil {
		return nil, err
	}
	all := make(map[string]string, n)
	for range n {
		name, err := r.text(maxHeaderName)
		if err != nil {
			return nil, err
		}
		value, err := r.text(maxHeaderValue)
		if err != nil {
			return nil, err
		}
		if _, twice := all[name]; twice || name == "" {
			return nil, broken("a header without a name, or twice")
		}
		all[name] = value
	}
	if r.pending.Len() > 0 {
		return nil, broken("more than headers in their block")
	}
	return all, nil
}

func (r *spdyReader) text(most uint32) (string, error) {
	n, err := r.number(most)
	if err != nil {
		return "", err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.headers, b); err != nil {
		return "", broken("a block of headers that ends early")
	}
	return string(b), nil
}

func (r *spdyReader) number(most uint32) (uint32, error) {
	var b [4]byte
	if _, err := io.ReadFull(r.headers, b[:]); err != nil {
		return 0, broken("a block of headers that ends early")
	}
	n := binary.BigEndian.Uint32(b[:])
	if n > most {
		return 0, broken("too many headers, or one too long")
	}
	return n, nil
}

// A spdyWriter writes whole frames. It is safe for concurrent use.
type spdyWriter struct {
	mu sync.Mutex
	to io.Writer
}

// forward writes a control frame as it came.
func (w *spdyWriter) forward(f spdyFrame, body []byte) error {
	return w.write(append(append(make([]byte, 0, 8+len(body)), f.raw[:]...), body...))
}

// data writes a data frame.
func (w *spdyWriter) data(stream uint32, flags byte, b []byte) error {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 8+len(b)), stream)
	out = binary.BigEndian.AppendUint32(out, uint32(flags)<<24|uint32(len(b)))
	return w.write(append(out, b...))
}

// control writes a control frame of words.
func (w *spdyWriter) control(kind uint16, words ...uint32) error {
	out := binary.BigEndian.AppendUint32(nil, 1<<31|spdyVersion<<16|uint32(kind))
	out = binary.BigEndian.AppendUint32(out, uint32(4*len(words)))
	for _, word := range words {
		out = binary.BigEndian.AppendUint32(out, word)
	}
	return w.write(out)
}

func (w *spdyWriter) write(b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.to.Write(b)
	return err
}
