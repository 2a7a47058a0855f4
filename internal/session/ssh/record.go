package ssh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
	"sync"
	"unicode/utf8"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/quota"
)

// A recording writes the streams of one act: the text of commands and terminals,
// with whatever looks like a secret replaced, up to a bound; of files in transit
// and other binary only how much there was, and its digest. It is safe for
// concurrent use.
type recording struct {
	session  *session
	v        *verdict
	terminal bool
	transfer bool
	bound    int64

	mu      sync.Mutex
	kept    int64
	closed  bool
	streams []*recorded // in the order of their first piece
}

// recorded is one stream of it.
type recorded struct {
	name   string
	digest hash.Hash
	bytes  int64
	mask   mask.Writer // nil: nothing more is kept
	rest   []byte      // the beginning of a character
	kept   int64       // bytes of text that were written
}

// secrets are what no recording holds, whatever policy masks on the way to the
// client. (Addresses and phone numbers are no secrets; masking those is a rule's
// choice.)
var secrets = sync.OnceValue(func() *mask.Masker {
	m, err := mask.Compile([]access.Mask{{Detect: []string{"API_KEY", "CREDIT_CARD", "IBAN", "JWT", "PRIVATE_KEY", "SSN"}}})
	if err != nil {
		panic("ssh: " + err.Error()) // the names are the package's own
	}
	return m
})

func newRecording(s *session, v *verdict, terminal bool) *recording {
	r := &recording{session: s, v: v, terminal: terminal, bound: s.cfg.RecordedOutput}
	if terminal {
		r.bound = s.cfg.RecordedTerminal
	}
	switch v.request.Action.SSH.Act {
	case access.ActExec, access.ActShell:
	default:
		r.transfer = true
	}
	return r
}

func (r *recording) stream(name string) *recorded {
	for _, st := range r.streams {
		if st.name == name {
			return st
		}
	}
	st := &recorded{name: name, digest: sha256.New()}
	switch {
	case r.transfer:
	case r.terminal:
		st.mask = secrets().NewTerminal()
	default:
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
	if r.closed {
		return errClientLeft
	}
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
	if left := r.bound - r.kept; int64(len(text)) > left {
		if r.terminal {
			return r.v.limit(fmt.Sprintf("the terminal showed more than %d bytes", r.bound))
		}
		st.mask, text = nil, text[:completeUTF8(text[:left])]
		if len(text) == 0 {
			return nil
		}
	}
	r.kept += int64(len(text))
	st.kept += int64(len(text))
	c := &access.StreamChunk{Name: st.name}
	if utf8.Valid(text) {
		c.Text = string(text)
	} else {
		c.Bytes = append([]byte(nil), text...)
	}
	return r.append(ctx, c)
}

func (r *recording) append(ctx context.Context, c *access.StreamChunk) error {
	return r.session.deps.Recorder.Append(ctx, access.Written, r.session.event(access.Event{Request: r.v.request.ID, Stream: c}))
}

// size records the size of the terminal; term is set the first time.
func (r *recording) size(ctx context.Context, term string, columns, rows int) error {
	return r.append(ctx, &access.StreamChunk{Name: access.Stdout, Term: term, Columns: columns, Rows: rows})
}

// sums ends the streams: what was held back is written, what was left out is
// counted, and all of each is summed up.
func (r *recording) sums() (all []access.StreamSum) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), recordWithin)
	defer cancel()
	for _, st := range r.streams {
		whole := st.mask != nil
		if whole {
			rest, err := st.mask.Close()
			if err == nil {
				err = r.keep(ctx, st, rest, true)
			}
			if err != nil {
				r.session.log.Error("the end of a stream is not recorded", "request", r.v.request.ID, "error", err)
			}
		}
		if omitted := st.bytes - st.kept; !whole && omitted > 0 {
			if err := r.append(ctx, &access.StreamChunk{Name: st.name, Omitted: omitted}); err != nil {
				r.session.log.Error("the end of a stream is not recorded", "request", r.v.request.ID, "error", err)
			}
		}
		all = append(all, access.StreamSum{Name: st.name, Bytes: st.bytes, SHA256: hex.EncodeToString(st.digest.Sum(nil))})
	}
	return all
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

// usedUp is the denial of an act that ran into a limit over several under way.
func usedUp(v *verdict, err error) *access.Denial {
	return quota.DenialOf(err, v.request.ID, v.request.Resource.Name, v.decision)
}

// printable makes text of clients and targets safe to show in a message or a log
// line: control characters become spaces, and what is long is cut.
func printable(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > limit {
		s = string(runes[:limit]) + "…"
	}
	return s
}
