package mask

import (
	"bytes"
	"math"
	"strings"
)

// A class is a set of the character sets that tokens are made of.
type class uint8

const (
	tokenRun  class = 1 << iota // A-Z a-z 0-9 _ -
	dottedRun                   // and .
	valueRun                    // and + / = ~ %
	keyBlock                    // a private key: open until its end marker
)

func classOf(c byte) class {
	switch {
	case isAlphanumeric(c), c == '_', c == '-':
		return tokenRun | dottedRun | valueRun
	case c == '.':
		return dottedRun | valueRun
	case c == '+', c == '/', c == '=', c == '~', c == '%':
		return valueRun
	}
	return 0
}

func isDigit(c byte) bool        { return '0' <= c && c <= '9' }
func isLetter(c byte) bool       { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isAlphanumeric(c byte) bool { return isDigit(c) || isLetter(c) }
func isHex(c byte) bool          { return isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'f' }

func upper(c byte) byte {
	if isLetter(c) {
		return c &^ 0x20
	}
	return c
}

// isLocal reports whether c can stand in front of the @ of an address. Bytes of
// other alphabets count.
func isLocal(c byte) bool {
	return isAlphanumeric(c) || c == '.' || c == '_' || c == '%' || c == '+' || c == '-' || c >= 0x80
}

const (
	maxLocal  = 64  // RFC 5321, section 4.5.3.1.1
	maxDomain = 255 // RFC 5321, section 4.5.3.1.2
)

// emailRun judges the run of address characters that begins at i: it is an
// e-mail address when an @ and a domain follow. Of a longer run the last 64
// bytes are the address. It reports whether i must be judged again with more
// text.
func (s *sieve) emailRun(w window, i int) (more bool) {
	e := i
	for e < len(w.b) && isLocal(w.b[e]) {
		e++
	}
	start := max(i, e-maxLocal)
	for start > i && start < e && w.b[start]&0xC0 == 0x80 {
		start++ // not in the middle of a character
	}
	if w.short(e) {
		// Wait where the address would begin if the run ended here.
		s.local = max(i, e-maxLocal)
		return s.local == i
	}
	if w.at(e) != '@' {
		s.local = e
		return false
	}
	end, more := w.domain(e + 1)
	if more {
		s.local = max(i, e-maxLocal)
		return s.local == i
	}
	s.local = e + 1
	if end > 0 {
		s.found(w, email, span{start: start, end: end})
	}
	return false
}

// domain returns where the domain name that begins at i ends, 0 if there is
// none: at least two labels, the last of two characters or more, not beginning
// with a digit.
func (w window) domain(i int) (end int, more bool) {
	dots, label, first := 0, 0, byte(0)
	for j := i; j <= i+maxDomain; j++ {
		if w.short(j) {
			return 0, true
		}
		c := w.at(j)
		if isAlphanumeric(c) || c == '-' || c >= 0x80 {
			if label++; label == 1 {
				first = c
			}
			continue
		}
		if dots > 0 && label >= 2 && !isDigit(first) {
			end = j
		}
		if c != '.' || label == 0 {
			return end, false
		}
		dots++
		label = 0
	}
	return end, false
}

// An issuer marks the keys it hands out by how they begin.
type issuer struct {
	prefix string
	least  int  // token characters after the prefix
	word   bool // the prefix is so short that it must begin a word
}

var issuers = [...]issuer{
	{"ABIA", 16, false}, {"ACCA", 16, false}, {"AKIA", 16, false}, {"ASIA", 16, false}, // Amazon
	{"AIza", 35, false}, {"GOCSPX-", 24, false}, {"ya29.", 20, true}, // Google
	{"AGE-SECRET-KEY-1", 50, false},
	{"PMAK-", 24, true}, {"SG.", 20, true}, {"dapi", 32, true},
	{"dckr_pat_", 20, false}, {"dop_v1_", 40, false}, {"figd_", 20, true},
	{"github_pat_", 22, false}, {"gho_", 30, false}, {"ghp_", 30, false}, {"ghr_", 30, false}, {"ghs_", 30, false}, {"ghu_", 30, false},
	{"gldt-", 20, false}, {"glpat-", 20, false}, {"glrt-", 20, false}, {"glsa_", 20, false}, {"gsk_", 30, true},
	{"hf_", 30, true}, {"hvb.", 20, true}, {"hvs.", 20, true}, {"key-", 32, true}, {"lin_api_", 20, false},
	{"npm_", 30, false}, {"nvapi-", 30, true}, {"pul-", 30, true}, {"pypi-", 40, true},
	{"rk_live_", 16, false}, {"rk_test_", 16, false}, {"rubygems_", 40, false},
	{"sbp_", 30, true}, {"shpat_", 30, false}, {"shpca_", 30, false}, {"shppa_", 30, false}, {"shpss_", 30, false},
	{"sk-", 20, true}, {"sk_live_", 16, false}, {"sk_test_", 16, false}, {"sntrys_", 30, false},
	{"sq0atp-", 20, false}, {"sq0csp-", 30, false}, {"tskey-", 20, true}, {"whsec_", 20, false},
	{"xai-", 30, true}, {"xapp-", 10, true},
	{"xoxa-", 10, false}, {"xoxb-", 10, false}, {"xoxe-", 10, false}, {"xoxp-", 10, false}, {"xoxr-", 10, false}, {"xoxs-", 10, false},
}

// apiKey matches a key by its issuer's prefix. It goes on for as long as there
// are token characters.
func (s *sieve) apiKey(w window, i int) (sp span, more bool) {
	r := s.detectors.issuers[w.at(i)]
	if !w.short(i+1) && s.detectors.second[w.at(i)]>>(w.at(i+1)&63)&1 == 0 {
		return span{}, false
	}
	for k := r[0]; k < r[1]; k++ {
		is := &issuers[k]
		same, known := w.hasPrefix(i, is.prefix)
		if !same || is.word && !w.beginsWord(i) {
			continue
		}
		if !known {
			return span{}, true
		}
		j, end := i+len(is.prefix), i+len(is.prefix)+is.least
		for j < end && classOf(w.at(j))&tokenRun != 0 {
			j++
		}
		if j < end {
			if w.short(j) {
				return span{}, true
			}
			continue
		}
		if is.word && plainWords(w.b[i+len(is.prefix):end]) {
			continue
		}
		run := tokenRun
		if strings.HasSuffix(is.prefix, ".") {
			run = dottedRun
		}
		return span{start: i, end: end, open: run}, false
	}
	return span{}, false
}

// hasPrefix reports whether the bytes at i agree with prefix as far as they are
// known, and whether all of them are.
func (w window) hasPrefix(i int, prefix string) (same, known bool) {
	for k := range len(prefix) {
		if w.short(i + k) {
			return true, false
		}
		if w.at(i+k) != prefix[k] {
			return false, true
		}
	}
	return true, true
}

// plainWords reports whether b holds nothing but lower-case letters and dashes,
// as names do and keys do not.
func plainWords(b []byte) bool {
	for _, c := range b {
		if isDigit(c) || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}

const (
	maxName  = 40  // bytes of a name looked at before a = or :
	judged   = 128 // bytes of a value by which it is judged
	minValue = 16
)

// assignment matches the value in name=value, name: value, "name": "value" and
// the like, when the name is one that credentials have and the value looks
// random. i is at the = or the :.
func (w window) assignment(i int) (sp span, more bool) {
	if c := w.at(i); c != '=' && c != ':' {
		return span{}, false
	}
	c := cursor{w: w, i: i + 1}
	c.skip("=>")
	for n := 0; n < 8 && c.in(" \t\"'`\\"); n++ {
		c.i++
	}
	c.scheme()
	end := c.i
	for end < c.i+judged && classOf(w.at(end))&valueRun != 0 {
		end++
	}
	more = c.more || end < c.i+judged && w.short(end)
	if !more && end-c.i < minValue || !credentialName(w.nameBefore(i)) {
		return span{}, false
	}
	if more {
		return span{}, true
	}
	if !random(w.b[c.i:end]) {
		return span{}, false
	}
	return span{start: c.i, end: end, open: valueRun}, false
}

// scheme skips the name of an HTTP authentication scheme and the space after.
func (c *cursor) scheme() {
	for _, name := range [...]string{"bearer ", "basic ", "token "} {
		k := 0
		for k < len(name) && !c.w.short(c.i+k) && (c.w.at(c.i+k)|0x20 == name[k]) {
			k++
		}
		if k == len(name) {
			c.i += k
			return
		}
		c.more = c.more || c.w.short(c.i+k)
	}
}

// nameBefore returns the name that ends before i, past quotes and spaces.
func (w window) nameBefore(i int) []byte {
	end := i
	for n := 0; n < 6 && end > 0 && strings.IndexByte(" \t\"'`\\:]", w.at(end-1)) >= 0; n++ {
		end--
	}
	start := end
	for start > 0 && end-start < maxName && classOf(w.at(start-1))&dottedRun != 0 {
		start--
	}
	return w.b[start:end]
}

// credentialName reports whether something called name is likely to be secret.
func credentialName(name []byte) bool {
	if len(name) < 3 {
		return false
	}
	var text [maxName]byte
	lower := text[:0]
	for _, c := range name[max(0, len(name)-maxName):] {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		lower = append(lower, c)
	}
	for n := len(lower); n > 0 && !isLetter(lower[n-1]); n-- {
		lower = lower[:n-1]
	}
	for _, part := range [...]string{"secret", "token", "passw", "credential", "apikey", "api_key", "api-key", "authorization"} {
		if bytes.Contains(lower, []byte(part)) {
			return true
		}
	}
	one := bytes.TrimSuffix(lower, []byte("s"))
	for _, end := range [...]string{"key", "keyid", "key_id", "auth", "pwd", "pass", "passphrase", "signature", "sig"} {
		if bytes.HasSuffix(lower, []byte(end)) || bytes.HasSuffix(one, []byte(end)) {
			return true
		}
	}
	return false
}

// random reports whether a value looks drawn rather than written: long, of
// several kinds of characters, and with much information in each of them.
func random(v []byte) bool {
	if len(v) < minValue {
		return false
	}
	v = v[:min(len(v), judged)]
	var counts [256]uint8
	var digits, uppers, lowers, turns int
	for i, c := range v {
		counts[c]++
		switch {
		case isDigit(c):
			digits++
		case 'A' <= c && c <= 'Z':
			uppers++
		case 'a' <= c && c <= 'z':
			lowers++
		}
		if i > 0 && isLetter(c) && isLetter(v[i-1]) && (c^v[i-1])&0x20 != 0 {
			turns++
		}
	}
	bits := 0.0
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(v))
			bits -= p * math.Log2(p)
		}
	}
	if bits < 2.8 {
		return false
	}
	mixed := digits >= 1 && uppers >= 1 && lowers >= 1
	return mixed || digits >= 2 && uppers+lowers >= 2 || turns >= 7 || uppers >= 3 && lowers >= 3 && len(v) >= 24
}

// userInfo matches the password in a URL: scheme://user:password@host. i is at
// the : of ://.
func (w window) userInfo(i int) (sp span, more bool) {
	same, known := w.hasPrefix(i, "://")
	if !same || !isAlphanumeric(w.at(i-1)) {
		return span{}, false
	}
	if !known {
		return span{}, true
	}
	password, at := 0, 0
	for j := i + 3; j < i+3+256; j++ {
		if w.short(j) {
			return span{}, true
		}
		switch c := w.at(j); {
		case c == ':' && password == 0:
			password = j + 1
		case c == '@' && password > 0:
			at = j // the last one counts: a password may hold others
		case c <= ' ', strings.IndexByte("@/?#\"'<>`\\", c) >= 0:
			if at > password {
				return span{start: password, end: at}, false
			}
			return span{}, false
		}
	}
	if at > password {
		return span{start: password, end: at}, false
	}
	return span{}, false
}

// maxHeader is the longest header part of a JWT that is waited for.
const maxHeader = 4096

// jwt matches a JSON Web Token: a header that is an encoded JSON object, a dot,
// and more. A header that is still not over after 4 KiB is taken for one.
func (s *sieve) jwt(w window, i int) (sp span, more bool) {
	same, known := w.hasPrefix(i, "eyJ")
	if !same {
		return span{}, false
	}
	if !known {
		return span{}, true
	}
	s.run = max(s.run, i) // never twice over the same bytes
	for s.run < len(w.b) && classOf(w.b[s.run])&tokenRun != 0 {
		s.run++
	}
	j := s.run
	if j-i >= maxHeader {
		return span{start: i, end: j, open: dottedRun}, false
	}
	if w.short(j) || w.at(j) == '.' && w.short(j+1) {
		return span{}, true
	}
	if j-i < 12 || w.at(j) != '.' || classOf(w.at(j+1))&dottedRun == 0 {
		return span{}, false
	}
	return span{start: i, end: j + 2, open: dottedRun}, false
}

// maxLabel is how long the words in the marker of a private key may be.
const maxLabel = 64

// keyBegin returns where the marker that begins a private key at i ends, 0 if
// there is none: PEM (RFC 7468), OpenPGP armor, and SSH's four-dash form.
func (w window) keyBegin(i int) (body int, more bool) {
	for _, form := range [...][2]string{{"-----BEGIN ", "-----"}, {"---- BEGIN ", " ----"}} {
		same, known := w.hasPrefix(i, form[0])
		if same && !known {
			return 0, true
		}
		if !same {
			continue
		}
		return w.keyLabel(i+len(form[0]), form[1])
	}
	return 0, false
}

// keyLabel returns where the marker ends whose label begins at i, when the
// label is one of a private key.
func (w window) keyLabel(i int, dashes string) (end int, more bool) {
	for j := i; j < i+maxLabel; j++ {
		same, known := w.hasPrefix(j, dashes)
		switch {
		case same && !known:
			return 0, true
		case same:
			if bytes.Contains(w.b[i:j], []byte("PRIVATE KEY")) {
				return j + len(dashes), false
			}
			return 0, false
		case !('A' <= w.at(j) && w.at(j) <= 'Z' || isDigit(w.at(j)) || w.at(j) == ' '):
			return 0, false
		}
	}
	return 0, false
}

// openKey hides everything from the marker at i to the one that ends the key,
// or to the end of the text. It returns where to go on judging.
func (s *sieve) openKey(w window, i, body int) int {
	s.keyBody = body
	s.found(w, privateKey, span{start: i, end: body, open: 0})
	for k := range s.spans {
		if s.spans[k].start == i && s.spans[k].end == body {
			s.spans[k].open = keyBlock
			return s.closeKey(w, &s.spans[k])
		}
	}
	return body
}

// closeKey looks for the end of the open private key sp.
func (s *sieve) closeKey(w window, sp *span) int {
	at := max(s.keyBody, 0)
	for {
		k := bytes.Index(w.b[at:], []byte("END "))
		if k < 0 {
			break
		}
		k += at
		at = k + 4
		dashes := ""
		if k-5 >= s.keyBody && string(w.b[k-5:k]) == "-----" {
			dashes = "-----"
		} else if k-5 >= s.keyBody && string(w.b[k-5:k]) == "---- " {
			dashes = " ----"
		} else {
			continue
		}
		if end, _ := w.keyLabel(at, dashes); end > 0 {
			sp.end, sp.open = end, 0
			s.local = max(s.local, end)
			return end
		}
	}
	s.keyBody = max(s.keyBody, len(w.b)-lookbehind)
	sp.end = len(w.b)
	s.local = max(s.local, len(w.b))
	return len(w.b)
}
