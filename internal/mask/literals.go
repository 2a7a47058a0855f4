package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
)

// MinLiteral is the least length of a literal, in bytes. Shorter ones would turn
// up by chance.
const MinLiteral = 6

// Literals are secrets known byte for byte, such as the credential that the
// gateway puts into a request and that a target may echo. It is immutable and
// safe for concurrent use; nil is none.
type Literals struct {
	forms [][]byte
}

// NewLiterals returns the Literals that hide each secret as it is, and as JSON,
// a URL and base64 would write it. Secrets shorter than MinLiteral are not
// looked for. It returns nil when there is nothing to look for.
func NewLiterals(secrets ...string) *Literals {
	l := &Literals{}
	for _, s := range secrets {
		if len(s) < MinLiteral {
			continue
		}
		quoted, err := json.Marshal(s)
		if err != nil { // a string
			panic("mask: " + err.Error())
		}
		l.add(s, string(quoted[1:len(quoted)-1]), url.QueryEscape(s), url.PathEscape(s))
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			l.add(encoding.EncodeToString([]byte(s)))
		}
	}
	if len(l.forms) == 0 {
		return nil
	}
	return l
}

func (l *Literals) add(forms ...string) {
	for _, f := range forms {
		if !slices.ContainsFunc(l.forms, func(known []byte) bool { return string(known) == f }) {
			l.forms = append(l.forms, []byte(f))
		}
	}
}

// Replace hides the literals in s and returns how many there were.
func (l *Literals) Replace(s string) (string, int64) {
	if l == nil {
		return s, 0
	}
	b := []byte(s)
	n := l.hide(b)
	if n == 0 {
		return s, 0
	}
	return string(b), n
}

// hide overwrites what it finds with as many asterisks: a length that was
// announced stays true.
func (l *Literals) hide(b []byte) (n int64) {
	for _, form := range l.forms {
		for rest := b; ; n++ {
			at := bytes.Index(rest, form)
			if at < 0 {
				break
			}
			for i := range form {
				rest[at+i] = '*'
			}
			rest = rest[at+len(form):]
		}
	}
	return n
}

// held is how many bytes at the end of b could be the beginning of a literal.
func (l *Literals) held(b []byte) (n int) {
	for _, form := range l.forms {
		for k := min(len(form)-1, len(b)); k > n; k-- {
			if bytes.HasSuffix(b, form[:k]) {
				n = k
				break
			}
		}
	}
	return n
}

// NewStream returns a Writer that hides the literals in what is written to it,
// split anywhere, and changes nothing else. It holds back less than the longest
// of them, and only while the end could be the beginning of one.
func (l *Literals) NewStream() *LiteralStream { return &LiteralStream{literals: l} }

// A LiteralStream is the Writer of Literals. It never fails.
type LiteralStream struct {
	literals *Literals
	held     []byte // what the next piece may complete
	out      []byte
	n        int64
}

// Masked returns how many literals were hidden so far.
func (s *LiteralStream) Masked() int64 { return s.n }

// Write takes the next piece.
func (s *LiteralStream) Write(p []byte) ([]byte, error) {
	s.out = append(append(s.out[:0], s.held...), p...)
	s.n += s.literals.hide(s.out)
	keep := s.literals.held(s.out)
	s.held = append(s.held[:0], s.out[len(s.out)-keep:]...)
	return s.out[:len(s.out)-keep], nil
}

// Close returns what was held.
func (s *LiteralStream) Close() ([]byte, error) {
	s.out, s.held = append(s.out[:0], s.held...), nil
	return s.out, nil
}

// Chain returns a Writer that writes to the first, and what comes out of it to
// the second.
func Chain(first, second Writer) Writer { return &chain{first: first, second: second} }

type chain struct {
	first, second Writer
	out           []byte
}

func (c *chain) Masked() int64 { return c.first.Masked() + c.second.Masked() }

func (c *chain) Write(p []byte) ([]byte, error) {
	out, err := c.first.Write(p)
	if err != nil {
		return nil, err
	}
	return c.second.Write(out)
}

func (c *chain) Close() ([]byte, error) {
	out, err := c.first.Close()
	if err == nil {
		out, err = c.second.Write(out)
	}
	if err != nil {
		return nil, err
	}
	c.out = append(c.out[:0], out...)
	if out, err = c.second.Close(); err != nil {
		return nil, err
	}
	return append(c.out, out...), nil
}
