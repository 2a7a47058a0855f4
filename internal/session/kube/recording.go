package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"sync"
	"unicode/utf8"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
)

// A recording writes the streams of exec and attach: their text, with whatever
// looks like a secret replaced, up to a bound; of what is no text, and of
// forwarded ports, how much there was. It is safe for concurrent use.
type recording struct {
	append   func(context.Context, *access.StreamChunk) error
	text     bool // streams have text; else they are counted only
	terminal bool
	bound    int64

	mu      sync.Mutex
	kept    int64
	streams []*recorded // in the order of their first piece
}

// recorded is one stream of it.
type recorded struct {
	name   string
	digest hash.Hash
	bytes  int64
	kept   int64
	mask   *mask.Stream // nil: nothing more is kept
	rest   []byte       // the beginning of a character
}

// secrets are what no recording holds, whatever policy masks on the way to the
// client.
var secrets = sync.OnceValue(func() *mask.Masker {
	m, err := mask.Compile([]access.Mask{{Detect: []string{"API_KEY", "CREDIT_CARD", "IBAN", "JWT", "PRIVATE_KEY", "SSN"}}})
	if err != nil {
		panic("kube: " + err.Error()) // the names are the package's own
	}
	return m
})

// maxStreams bounds what is summed up: forwarded ports have two each.
const maxStreams = 128

func (r *recording) stream(name string) *recorded {
	for _, st := range r.streams {
		if st.name == name {
			return st
		}
	}
	if len(r.streams) >= maxStreams {
		return r.streams[maxStreams-1]
	}
	st := &recorded{name: name, digest: sha256.New()}
	if r.text {
		st.mask = secrets().NewText()
	}
	r.streams = append(r.streams, st)
	return st
}

// write records a piece. When it returns nil, what is to be kept of it is
// written, save for an end that may be the beginning of a secret: that comes
// with the next piece.
func (r *recording) write(ctx context.Context, name string, piece []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.stream(name)
	st.digest.Write(piece)
	st.bytes += int64(len(piece))
	if st.mask == nil {
		return nil
	}
	text, err := st.mask.Write(piece)
	if err != nil { // binary
		st.mask = nil
		return nil
	}
	return r.keep(ctx, st, text, false)
}

// keep writes text within the bound. r.mu is held.
func (r *recording) keep(ctx context.Context, st *recorded, text []byte, last bool) error {
	text = append(st.rest, text...)
	st.rest = nil
	if n := completeUTF8(text); n < len(text) && !last {
		st.rest, text = append([]byte(nil), text[n:]...), text[:n]
	}
	if len(text) == 0 {
		return nil
	}
	if r.kept+int64(len(text)) > r.bound {
		if r.terminal {
			return limitError(fmt.Sprintf("the terminal showed more than %d bytes", r.bound))
		}
		st.mask = nil
		return nil
	}
	c := &access.StreamChunk{Name: st.name}
	if utf8.Valid(text) {
		c.Text = string(text)
	} else {
		c.Bytes = append([]byte(nil), text...)
	}
	if err := r.append(ctx, c); err != nil {
		return err
	}
	r.kept += int64(len(text))
	st.kept += int64(len(text))
	return nil
}

// size records the size of the terminal.
func (r *recording) size(ctx context.Context, columns, rows int) error {
	return r.append(ctx, &access.StreamChunk{Name: access.Stdout, Columns: columns, Rows: rows})
}

// sums ends the streams: what was held back is written, what was left out is
// counted, and all of each is summed up.
func (r *recording) sums(ctx context.Context) (all []access.StreamSum, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, st := range r.streams {
		whole := st.mask != nil
		if whole {
			rest, closing := st.mask.Close()
			if closing == nil {
				closing = r.keep(ctx, st, rest, true)
			}
			whole = st.mask != nil
			err = first(err, closing)
		}
		if omitted := st.bytes - st.kept; !whole && r.text && omitted > 0 {
			err = first(err, r.append(ctx, &access.StreamChunk{Name: st.name, Omitted: omitted}))
		}
		all = append(all, access.StreamSum{Name: st.name, Bytes: st.bytes, SHA256: hex.EncodeToString(st.digest.Sum(nil))})
	}
	return all, err
}

func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// completeUTF8 is how much of b ends with a whole character. What is no UTF-8 at
// all is complete.
func completeUTF8(b []byte) int {
	for back := 1; back <= min(utf8.UTFMax-1, len(b)); back++ {
		c := b[len(b)-back]
		if c < utf8.RuneSelf {
			break
		}
		if utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-back:]) {
				return len(b) - back
			}
			break
		}
	}
	return len(b)
}

// sizes reads what clients say of their terminal's size: JSON documents, one
// after another, however they are cut.
type sizes struct {
	rest []byte
}

// maxSizes bounds a document that is not whole yet.
const maxSizes = 1 << 10

func (s *sizes) take(p []byte, sized func(columns, rows int) error) error {
	if len(s.rest)+len(p) > maxSizes {
		return broken("a terminal's size of more than %d bytes", maxSizes)
	}
	s.rest = append(s.rest, p...)
	for {
		end := documentEnd(s.rest)
		if end == 0 {
			return nil
		}
		var size struct{ Width, Height uint16 }
		if err := json.Unmarshal(s.rest[:end], &size); err != nil {
			return broken("a terminal's size that cannot be read")
		}
		s.rest = append([]byte(nil), s.rest[end:]...)
		if err := sized(int(size.Width), int(size.Height)); err != nil {
			return err
		}
	}
}

// documentEnd is how much of b the first object takes, which has no strings with
// braces; 0 when it is not whole.
func documentEnd(b []byte) int {
	for i, c := range b {
		if c == '}' {
			return i + 1
		}
	}
	return 0
}
