package mask

import (
	"fmt"
	"strconv"
)

// Bounds of a JSON document. A deeper document or a longer name is refused; a
// longer string that would have to be looked into is hidden whole.
const (
	maxDepth  = 128
	maxString = 64 << 10 // bytes as written, escapes included
	maxWithin = 1 << 20  // of a string that holds a document
)

// A state is what a JSON parser expects next.
type state uint8

const (
	expectValue   state = iota
	expectElement       // the first of an array, or ]
	expectMember        // the first of an object, or }
	expectName
	expectColon
	expectMore // a comma, or the end of the container
	expectEnd  // nothing but white space
	inString
	inEscape
	inHex
	inNumber
	inLiteral
	inChoice // an object of which it is not known yet whether it is spared
)

// A handling says what becomes of the string being read.
type handling uint8

const (
	passing  handling = iota // written as it is read
	holding                  // kept until it is over
	dropping                 // neither
)

// A frame is an array or object being read.
type frame struct {
	object bool
	index  int // of the next element
	nodes  int // its masked places are JSON.active[nodes:]
}

// JSON masks JSON text (RFC 8259). What is not masked comes out byte for byte
// as it came in, white space and the form of numbers included. A masked value
// becomes the string "***", null stays null. Names are compared after
// unescaping, in their own case, and every occurrence of a repeated name counts.
//
// It refuses everything that is not JSON in UTF-8: other encodings, byte order
// marks, comments, NaN, anything after the document. Members of an object, not
// the document, are held: at most one string of 64 KiB at a time, and an object
// that may be spared (see Exemption).
type JSON struct {
	masker *Masker
	lines  bool // a sequence of documents, each on lines of its own

	state  state
	stack  []frame
	active []*node // masked places below the containers being read, by frame
	reach  []*node // places of the value that comes next
	hidden bool    // nothing is written: a masked value is being read
	depth  int     // of the value being hidden

	handling handling
	name     bool    // the string is a member's name
	held     []byte  // of a string, quotes left out
	partial  bool    // the string is to be masked partially
	mark     string  // what stands for the value being masked
	within   *Masker // masks the document in the string
	wanted   bool    // watched wants the string
	called   []byte  // the name that the next value belongs to, for detectors
	length   int     // of the string so far
	hex      int     // digits of \u still to come
	utf8     continuation

	choosing *choosing // the object being read
	inner    bool      // this reads one object that may be spared
	spared   bool      // and it is
	watched  *choosing // whom to tell about its members

	number  numberState
	literal string // rest of true, false or null
	newline bool   // since the last document

	out    []byte
	plain  []byte // scratch: the string without its escapes
	masked int64
	offset int64
	err    error
}

// NewJSON returns a Writer for one JSON document.
func (m *Masker) NewJSON() *JSON {
	j := &JSON{masker: m}
	j.begin()
	return j
}

// NewJSONLines returns a Writer for a sequence of JSON documents separated by
// newlines (NDJSON, JSON Lines). There may be none.
func (m *Masker) NewJSONLines() *JSON {
	j := m.NewJSON()
	j.lines = true
	return j
}

// begin expects a new document.
func (j *JSON) begin() {
	j.state = expectValue
	j.newline = false
	j.reach = j.reach[:0]
	if j.masker.fields != nil {
		j.reach = append(j.reach, j.masker.fields)
	}
}

// reset makes j ready for another document after one that ended or failed.
func (j *JSON) reset() {
	*j = JSON{
		masker: j.masker, lines: j.lines, masked: j.masked,
		stack: j.stack[:0], active: j.active[:0], reach: j.reach[:0],
		held: j.held[:0], called: j.called[:0], out: j.out[:0], plain: j.plain[:0],
	}
	j.begin()
}

// Masked returns how many values were replaced so far.
func (j *JSON) Masked() int64 { return j.masked }

// Write takes the next piece of the text.
func (j *JSON) Write(p []byte) ([]byte, error) {
	j.out = j.out[:0]
	for i := 0; i < len(p) && j.err == nil; {
		n, err := j.step(p[i:])
		i += n
		j.offset += int64(n)
		if err != nil {
			j.err = fmt.Errorf("json: byte %d: %w", j.offset, err)
		}
	}
	if j.err != nil {
		return nil, j.err
	}
	return j.out, nil
}

// Close says that the text is over. It fails when the document is not.
func (j *JSON) Close() ([]byte, error) {
	j.out = j.out[:0]
	if j.err == nil && j.state == inNumber && j.number.complete() {
		j.endValue()
	}
	if j.err == nil && j.state != expectEnd && !(j.lines && j.state == expectValue && len(j.stack) == 0) {
		j.err = fmt.Errorf("json: byte %d: text ends within the document", j.offset)
	}
	if j.err != nil {
		return nil, j.err
	}
	return j.out, nil
}

// step reads at least one byte of p, or ends a number before it.
func (j *JSON) step(p []byte) (n int, err error) {
	switch j.state {
	case inString:
		return j.stringBytes(p)
	case inEscape, inHex:
		return 1, j.escape(p[0])
	case inNumber:
		return j.numberBytes(p)
	case inChoice:
		return j.choiceBytes(p)
	case inLiteral:
		if p[0] != j.literal[0] {
			return 0, fmt.Errorf("literal is not true, false or null")
		}
		j.emit(p[:1])
		if j.literal = j.literal[1:]; j.literal == "" {
			j.endValue()
		}
		return 1, nil
	}
	if c := p[0]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
		if j.state == expectEnd && j.lines && j.newline {
			j.begin()
		}
		if (j.state == expectValue || j.state == expectElement) && j.choose(c) {
			return 0, nil
		}
		return 1, j.structure(c, p[:1])
	}
	return j.space(p), nil
}

func (j *JSON) space(p []byte) int {
	n := 0
	for n < len(p) && (p[n] == ' ' || p[n] == '\t' || p[n] == '\n' || p[n] == '\r') {
		j.newline = j.newline || p[n] == '\n'
		n++
	}
	j.emit(p[:n])
	return n
}

// structure reads the first byte of a value or a name, or a byte between them.
func (j *JSON) structure(c byte, p []byte) error {
	switch {
	case j.state == expectValue, j.state == expectElement && c != ']':
		return j.beginValue(c, p)
	case (j.state == expectName || j.state == expectMember) && c == '"':
		j.beginString(true)
		return nil
	case j.state == expectColon && c == ':':
		j.emit(p)
		j.state = expectValue
		return nil
	case j.state == expectMore && c == ',':
		j.emit(p)
		j.state = expectName
		if !j.top().object {
			j.state = expectValue
			j.element()
		}
		return nil
	case c == '}' && j.top() != nil && j.top().object && (j.state == expectMore || j.state == expectMember),
		c == ']' && j.top() != nil && !j.top().object && (j.state == expectMore || j.state == expectElement):
		j.emit(p)
		j.pop()
		j.endValue()
		return nil
	}
	return fmt.Errorf("unexpected byte 0x%02x", c)
}

func (j *JSON) top() *frame {
	if len(j.stack) == 0 {
		return nil
	}
	return &j.stack[len(j.stack)-1]
}

// beginValue reads the first byte of a value whose masked places are in reach.
func (j *JSON) beginValue(c byte, p []byte) error {
	masked, partial := j.reached()
	if masked {
		j.mark = j.reachedMark()
	}
	if masked && c != 'n' && !(partial && c == '"') {
		j.hidden, j.depth = true, len(j.stack)
	}
	switch {
	case c == '"':
		j.beginString(false)
		j.partial = masked && partial
		if !masked && !j.hidden {
			j.within = j.reachedWithin()
		}
		j.wanted = j.watched != nil && len(j.stack) == 1 && j.watched.begins(c)
		if j.wanted && !j.hidden || j.partial || j.within != nil || j.masker.detectors != nil && !j.hidden {
			j.handling = holding
		} else {
			j.emit(p)
		}
		return nil
	case c == '{' || c == '[':
		j.called = j.called[:0]
		j.emit(p)
		return j.push(c == '{')
	case c == '-' || isDigit(c):
		j.state, j.number = inNumber, beginNumber(c)
	case c == 't':
		j.state, j.literal = inLiteral, "rue"
	case c == 'f':
		j.state, j.literal = inLiteral, "alse"
	case c == 'n':
		j.state, j.literal = inLiteral, "ull"
	default:
		return fmt.Errorf("unexpected byte 0x%02x", c)
	}
	j.emit(p)
	return nil
}

// reached reports whether a pointer ends at the value that begins, and whether
// all that do are partial.
func (j *JSON) reached() (masked, partial bool) {
	partial = true
	if j.hidden {
		return false, false
	}
	for _, n := range j.reach {
		if n.masked || n.exempt && !j.spared {
			masked = true
			partial = partial && n.partial && (!n.exempt || j.spared)
		}
	}
	return masked, masked && partial
}

// reachedMark is what stands for the value that begins.
func (j *JSON) reachedMark() string {
	for _, n := range j.reach {
		if (n.masked || n.exempt) && n.mark != "" {
			return n.mark
		}
	}
	return Mark
}

// reachedWithin masks the document in the string that begins; nil: it holds none.
func (j *JSON) reachedWithin() *Masker {
	for _, n := range j.reach {
		if n.within != nil {
			return n.within
		}
	}
	return nil
}

func (j *JSON) push(object bool) error {
	if len(j.stack) == maxDepth {
		return fmt.Errorf("more than %d levels", maxDepth)
	}
	j.stack = append(j.stack, frame{object: object, nodes: len(j.active)})
	if !j.hidden {
		j.active = append(j.active, j.reach...)
	}
	j.state = expectMember
	if !object {
		j.state = expectElement
		j.element()
	}
	return nil
}

func (j *JSON) pop() {
	j.active = j.active[:j.top().nodes]
	j.stack = j.stack[:len(j.stack)-1]
}

// element finds the masked places of the next element of the array.
func (j *JSON) element() {
	f := j.top()
	j.reach = j.reach[:0]
	if from := j.active[f.nodes:]; len(from) > 0 {
		var digits [20]byte
		j.reach = follow(j.reach, from, strconv.AppendInt(digits[:0], int64(f.index), 10))
	}
	f.index++
}

// endValue comes after the last byte of a value.
func (j *JSON) endValue() {
	if j.hidden && j.depth == len(j.stack) {
		j.hidden = false
		j.emitMark(j.mark)
	}
	j.called = j.called[:0]
	j.state = expectMore
	if len(j.stack) == 0 {
		j.state, j.newline = expectEnd, false
	}
}

func (j *JSON) emit(p []byte) {
	if !j.hidden {
		j.out = append(j.out, p...)
	}
}

func (j *JSON) emitMark(mark string) {
	j.out = append(j.out, '"')
	j.out = append(j.out, mark...)
	j.out = append(j.out, '"')
	j.masked++
}
