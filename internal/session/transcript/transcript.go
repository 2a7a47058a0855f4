// Package transcript records the streams that an act on a host or in a container
// has: their text, with whatever looks like a secret replaced, up to a bound; of
// files in transit, forwarded ports and what is no text, how much there was and
// its digest.
package transcript

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"sync"
	"unicode/utf8"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/vt"
)

// maxStreams bounds what is summed up: a forwarded port has two streams for each
// connection. What comes with further names is counted with the last.
const maxStreams = 128

// ErrClosed is the error of a Write after Sums.
var ErrClosed = errors.New("the act is over")

// Config says what a Transcript keeps. Append is required, and Full for a
// terminal.
type Config struct {
	// Append keeps a chunk; what it tells of must not go on after an error.
	Append func(context.Context, *access.StreamChunk) error
	// Text says that streams have text worth keeping; else they are only counted.
	Text     bool
	Terminal bool  // what is in the streams is drawn on one
	Bound    int64 // bytes of text, all streams together
	// Full makes the error of a Write beyond Bound to a terminal, which must end:
	// half of it could not be played back. Other streams go on, and are counted.
	Full func() error
}

// A Transcript is that of one act. It is safe for concurrent use.
type Transcript struct {
	cfg Config

	mu      sync.Mutex
	kept    int64
	closed  bool
	streams []*stream // in the order of their first piece
}

// A stream is one of them.
type stream struct {
	name   string
	digest hash.Hash
	bytes  int64
	mask   mask.Writer // nil: nothing more is kept
	rest   []byte      // the beginning of a character
	kept   int64       // bytes of text that were written
}

// New returns an empty transcript.
func New(c Config) *Transcript { return &Transcript{cfg: c} }

// secrets are what no recording holds, whatever policy masks on the way to the
// client. (Addresses and phone numbers are no secrets; masking those is a rule's
// choice.)
var secrets = sync.OnceValue(func() *mask.Masker {
	m, err := mask.Compile([]access.Mask{{Detect: []string{"API_KEY", "CREDIT_CARD", "IBAN", "JWT", "PRIVATE_KEY", "SSN"}}})
	if err != nil {
		panic("transcript: " + err.Error()) // the names are the package's own
	}
	return m
})

// Text is a text without its secrets, for what is recorded in one piece.
func Text(b []byte) []byte {
	kept, _ := secrets().Text(b)
	return kept
}

func (t *Transcript) stream(name string) *stream {
	for _, s := range t.streams {
		if s.name == name {
			return s
		}
	}
	if len(t.streams) == maxStreams {
		return t.streams[maxStreams-1]
	}
	s := &stream{name: name, digest: sha256.New()}
	switch {
	case !t.cfg.Text:
	case t.cfg.Terminal:
		s.mask = secrets().NewTerminal()
	default:
		s.mask = secrets().NewText()
	}
	t.streams = append(t.streams, s)
	return s
}

// Write records a piece. When it returns nil, what is to be kept of it is
// written, save for an end that may be the beginning of a secret: that comes
// with the next piece.
func (t *Transcript) Write(ctx context.Context, name string, piece []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	s := t.stream(name)
	s.digest.Write(piece)
	s.bytes += int64(len(piece))
	if s.mask == nil {
		return nil
	}
	text, err := s.mask.Write(piece)
	if err != nil { // binary
		s.mask = nil
		return nil
	}
	return t.keep(ctx, s, text, false)
}

// keep writes text within the bound. t.mu is held.
func (t *Transcript) keep(ctx context.Context, s *stream, text []byte, last bool) error {
	text = append(s.rest, text...)
	s.rest = nil
	if n := vt.CompleteUTF8(text); n < len(text) && !last {
		s.rest, text = append([]byte(nil), text[n:]...), text[:n]
	}
	if left := t.cfg.Bound - t.kept; int64(len(text)) > left {
		if t.cfg.Terminal {
			return t.cfg.Full()
		}
		s.mask, text = nil, text[:vt.CompleteUTF8(text[:left])]
	}
	if len(text) == 0 {
		return nil
	}
	t.kept += int64(len(text))
	s.kept += int64(len(text))
	c := &access.StreamChunk{Name: s.name}
	if utf8.Valid(text) {
		c.Text = string(text)
	} else {
		c.Bytes = append([]byte(nil), text...)
	}
	return t.cfg.Append(ctx, c)
}

// Size records the size of the terminal; term, its kind, is set the first time
// where it is known.
func (t *Transcript) Size(ctx context.Context, term string, columns, rows int) error {
	return t.cfg.Append(ctx, &access.StreamChunk{Name: access.Stdout, Term: term, Columns: columns, Rows: rows})
}

// Sums ends the transcript: what was held back is written, what was left out is
// counted, and all of each stream is summed up. The error is the first of
// Append's; the sums are right whatever it is.
func (t *Transcript) Sums(ctx context.Context) (all []access.StreamSum, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, s := range t.streams {
		whole := s.mask != nil
		if whole {
			rest, fault := s.mask.Close()
			if fault == nil {
				fault = t.keep(ctx, s, rest, true)
			}
			err = errors.Join(err, fault)
			whole = s.mask != nil
		}
		if omitted := s.bytes - s.kept; !whole && omitted > 0 {
			err = errors.Join(err, t.cfg.Append(ctx, &access.StreamChunk{Name: s.name, Omitted: omitted}))
		}
		all = append(all, access.StreamSum{Name: s.name, Bytes: s.bytes, SHA256: hex.EncodeToString(s.digest.Sum(nil))})
	}
	return all, err
}
