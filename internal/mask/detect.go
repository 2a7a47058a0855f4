package mask

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// A kind is a set of detectors.
type kind uint16

const (
	creditCard kind = 1 << iota
	ssn
	iban
	email
	phone
	apiKey
	jwt
	privateKey
	escape // no detector: the byte may make the next ones begin a word
)

// kindNames are the names that policies use, sorted.
var kindNames = [...]struct {
	name string
	kind kind
}{
	{"API_KEY", apiKey}, {"CREDIT_CARD", creditCard}, {"EMAIL", email}, {"IBAN", iban},
	{"JWT", jwt}, {"PHONE", phone}, {"PRIVATE_KEY", privateKey}, {"SSN", ssn},
}

// Detectors lists the detector names that Compile knows, sorted.
func Detectors() []string {
	names := make([]string, len(kindNames))
	for i, known := range kindNames {
		names[i] = known.name
	}
	return names
}

func kindOf(name string) (kind, bool) {
	for _, known := range kindNames {
		if known.name == name {
			return known.kind, true
		}
	}
	return 0, false
}

// A neighbour is what stands before a byte.
type neighbour uint8

const (
	other neighbour = iota
	letter
	digit
)

// detectors is a compiled choice of detectors.
type detectors struct {
	on       kind
	redacted kind // those that at least one mask redacts; the others are partial

	// start says which detectors something that begins with this byte after
	// that neighbour may interest. Most bytes interest none.
	start   [256][3]kind
	before  [256]neighbour
	issuers [256][2]uint8 // those of issuers whose prefix begins with this byte
	second  [256]uint64   // and their second bytes, each as bit c&63
}

func (d *detectors) add(names []string, partial bool) error {
	for _, name := range names {
		k, ok := kindOf(name)
		if !ok {
			return fmt.Errorf("detect: %q is not one of %s", name, strings.Join(Detectors(), ", "))
		}
		d.on |= k
		if !partial || k == privateKey { // the end of a PEM block says nothing
			d.redacted |= k
		}
	}
	return nil
}

// index fills the tables for the detectors that are on.
func (d *detectors) index() {
	for c := range d.start {
		b := byte(c)
		word := startsOf(b)
		within := word & (phone | privateKey | email | escape)
		if b == '=' || b == ':' {
			within |= apiKey
		}
		for i, is := range issuers {
			if is.prefix[0] != b {
				continue
			}
			if d.issuers[c][1] == 0 {
				d.issuers[c][0] = uint8(i)
			}
			d.issuers[c][1] = uint8(i + 1)
			d.second[c] |= 1 << (is.prefix[1] & 63)
			word |= apiKey
			if !is.word {
				within |= apiKey
			}
		}
		d.start[c] = [3]kind{other: word, letter: within, digit: within}
		if isDigit(b) {
			d.before[c] = digit
			d.start[c] = [3]kind{other: word, letter: word, digit: word & email}
		} else if isLetter(b) {
			d.before[c] = letter
		}
		for i := range d.start[c] {
			d.start[c][i] &= d.on | escape
		}
	}
}

// startsOf lists what may begin with c at the beginning of a word, API keys by
// prefix left out.
func startsOf(c byte) (k kind) {
	if isDigit(c) {
		k |= creditCard | ssn | phone
	}
	if c == '+' || c == '(' {
		k |= phone
	}
	if isLetter(c) {
		k |= iban
	}
	if isLocal(c) {
		k |= email
	}
	if c == '=' || c == ':' {
		k |= apiKey
	}
	if c == 'e' {
		k |= jwt
	}
	if c == '-' {
		k |= privateKey
	}
	if c == '%' || c == '\\' {
		k |= escape
	}
	return k
}

// mask runs over the whole of b. It returns b itself when nothing was found.
func (d *detectors) mask(b []byte) ([]byte, int64) {
	s := newSieve(d)
	s.buf = b
	w := window{b, true}
	s.scan(w)
	if len(s.spans) == 0 {
		return b, 0
	}
	return s.render(make([]byte, 0, len(b)), w, len(b)), s.masked
}

// lookbehind is how many bytes before the one being judged stay available: the
// name before a "=", the end marker of a private key, the tail of a partial
// mask.
const lookbehind = 96

// A window is what can be seen of a text. last says that nothing follows, so
// that the end of b is the end of the text.
type window struct {
	b    []byte
	last bool
}

// short reports whether byte i is not known yet.
func (w window) short(i int) bool { return i >= len(w.b) && !w.last }

// at returns byte i, or 0 outside of the text. Whoever looks ahead asks short
// first.
func (w window) at(i int) byte {
	if i < 0 || i >= len(w.b) {
		return 0
	}
	return w.b[i]
}

// A span is a part of the buffer to be hidden. open are the runs that go on
// past its end for as long as the bytes belong to them.
type span struct {
	start, end int
	open       class
	redact     bool
}

// A sieve finds the spans of a text that arrives in pieces. Every position is
// judged exactly once, by what is before it (lookbehind) and after it; while
// the answer could still change with more text it waits there. That is why the
// outcome cannot depend on the pieces. All spans are found, also those that
// begin inside another one, and overlapping spans are hidden as one.
type sieve struct {
	detectors *detectors
	buf       []byte // lookbehind, then what is not written yet
	pos       int    // the next position to judge; everything before is written or inside spans[0]
	local     int    // where the next run of e-mail characters begins
	run       int    // everything from the last possible JWT to here is token characters
	escape    int    // the last byte that may begin an escape
	keyBody   int    // from where to look for the end of an open private key
	spans     []span // found and not written yet, by start
	masked    int64
}

func newSieve(d *detectors) sieve { return sieve{detectors: d, escape: -lookbehind} }

// feed takes p and appends to out what is now known to be safe.
func (s *sieve) feed(out, p []byte, last bool) []byte {
	s.buf = append(s.buf, p...)
	w := window{s.buf, last}
	to := s.scan(w)
	out = s.render(out, w, to)
	if cut := to - lookbehind; cut > 0 {
		s.buf = append(s.buf[:0], s.buf[cut:]...)
		s.shift(cut)
	}
	return out
}

// unwritten is how much of what was fed is neither written nor replaced yet.
func (s *sieve) unwritten() int {
	at := s.pos
	if len(s.spans) > 0 {
		at = min(at, s.spans[0].start)
	}
	return len(s.buf) - at
}

func (s *sieve) shift(cut int) {
	s.pos -= cut
	s.local -= cut
	s.run -= cut
	s.escape -= cut
	s.keyBody -= cut
	for i := range s.spans {
		s.spans[i].start -= cut
		s.spans[i].end -= cut
	}
}

// scan judges positions from s.pos on and returns the one at which it has to
// wait for more, or the end.
func (s *sieve) scan(w window) int {
	i := s.resume(w)
	for i < len(w.b) {
		before := other
		if i > 0 && (s.escape < i-6 || !w.escaped(i)) {
			before = s.detectors.before[w.b[i-1]]
		}
		kinds := s.detectors.start[w.b[i]][before]
		if kinds == 0 {
			i++
			continue
		}
		if kinds&escape != 0 {
			s.escape = i
		}
		if kinds&email != 0 && i >= s.local && s.emailRun(w, i) {
			return i
		}
		if kinds &^= email | escape; kinds == 0 {
			i++
			continue
		}
		next, more := s.judge(w, i, kinds)
		if more {
			return i
		}
		i = next
	}
	return i
}

// resume carries on the spans that were open at the end of the last piece and
// returns where to go on judging.
func (s *sieve) resume(w window) int {
	for i := range s.spans {
		if sp := &s.spans[i]; sp.open == keyBlock {
			return s.closeKey(w, sp)
		} else if sp.open != 0 {
			s.extend(w, sp)
		}
	}
	return s.pos
}

// extend moves the end of an open span to where its runs end.
func (s *sieve) extend(w window, sp *span) {
	for sp.open != 0 && sp.end < len(w.b) {
		if sp.open &= classOf(w.b[sp.end]); sp.open != 0 {
			sp.end++
		}
	}
}

// judge asks the detectors of kinds about position i. It returns the next
// position to judge; more says that it cannot tell yet.
func (s *sieve) judge(w window, i int, kinds kind) (next int, more bool) {
	if kinds&(creditCard|ssn|phone) != 0 {
		if more := s.judgeNumber(w, i, kinds); more {
			return i, true
		}
	}
	if kinds&iban != 0 && (w.short(i+2) || isDigit(w.at(i+2))) {
		end, more := w.iban(i)
		if more {
			return i, true
		}
		s.found(w, iban, span{start: i, end: end})
	}
	if kinds&(apiKey|jwt) != 0 {
		if more := s.judgeToken(w, i, kinds); more {
			return i, true
		}
	}
	if kinds&privateKey != 0 {
		body, more := w.keyBegin(i)
		if more {
			return i, true
		}
		if body > 0 {
			return s.openKey(w, i, body), false
		}
	}
	return i + 1, false
}

func (s *sieve) judgeNumber(w window, i int, kinds kind) (more bool) {
	if !w.short(i + 3) {
		kinds &= likely(w.b[i], w.at(i+1), w.at(i+2), w.at(i+3))
	}
	if kinds&creditCard != 0 && !more {
		end, wait := w.card(i)
		s.found(w, creditCard, span{start: i, end: end})
		more = wait
	}
	if kinds&ssn != 0 && !more {
		end, wait := w.ssn(i)
		s.found(w, ssn, span{start: i, end: end})
		more = wait
	}
	if kinds&phone != 0 && !more {
		end, wait := w.phone(i)
		s.found(w, phone, span{start: i, end: end})
		more = wait
	}
	return more
}

// likely says at a glance what four bytes can begin.
func likely(a, b, c, d byte) kind {
	k := creditCard | ssn | phone
	if !isDigit(b) || !isDigit(c) {
		k = 0
	}
	if !isDigit(d) && d != ' ' && d != '-' {
		k &^= creditCard
	}
	if d != '-' {
		k &^= ssn
		if d != '.' {
			k &^= phone
		}
	}
	if a == '1' || !isDigit(a) {
		k |= phone
	}
	return k
}

func (s *sieve) judgeToken(w window, i int, kinds kind) (more bool) {
	var sp span
	if kinds&jwt != 0 {
		sp, more = s.jwt(w, i)
		s.found(w, jwt, sp)
	}
	if kinds&apiKey == 0 || more {
		return more
	}
	if c := w.at(i); c != '=' && c != ':' {
		sp, more = s.apiKey(w, i)
		s.found(w, apiKey, sp)
		return more
	}
	if sp, more = w.assignment(i); more {
		return true
	}
	s.found(w, apiKey, sp)
	sp, more = w.userInfo(i)
	s.found(w, apiKey, sp)
	return more
}

// found notes sp, if it is one: a span that ends at 0 is not, for nothing that
// is found is empty.
func (s *sieve) found(w window, k kind, sp span) {
	if sp.end <= 0 {
		return
	}
	sp.redact = s.detectors.redacted&k != 0
	s.extend(w, &sp)
	i := len(s.spans)
	for i > 0 && s.spans[i-1].start > sp.start {
		i--
	}
	s.spans = slices.Insert(s.spans, i, sp)
}

// render appends to out the text before to, with the spans hidden. A span that
// is not over at to stays and its bytes are dropped.
func (s *sieve) render(out []byte, w window, to int) []byte {
	at, k := s.pos, 0
	s.pos = to
	for k < len(s.spans) && s.spans[k].start < to {
		sp := s.spans[k]
		for k++; k < len(s.spans) && s.spans[k].start < sp.end; k++ {
			sp.end = max(sp.end, s.spans[k].end)
			sp.open |= s.spans[k].open
			sp.redact = sp.redact || s.spans[k].redact
		}
		if at < sp.start {
			out = append(out, w.b[at:sp.start]...)
		}
		at = to
		if !w.last && (sp.end > to || sp.open != 0) {
			k--
			s.spans[k] = sp
			break
		}
		at = min(sp.end, len(w.b))
		out = append(out, replacement(w.b[max(sp.start, 0):at], sp.redact)...)
		s.masked++
	}
	s.spans = append(s.spans[:0], s.spans[k:]...)
	return append(out, w.b[at:to]...)
}

func replacement(text []byte, redact bool) []byte {
	if redact {
		return []byte(Mark)
	}
	return keepLast(bytes.ToValidUTF8(text, nil))
}
