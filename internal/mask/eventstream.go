package mask

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"
)

// maxEvent bounds one server-sent event.
const maxEvent = 1 << 20

// EventStream masks server-sent events (WHATWG HTML, section 9.2), each as soon
// as it is complete. The payload of an event, its data lines joined, is masked
// as JSON when it is JSON, else by detectors as text. Where JSON fields are
// masked a payload that is not JSON is refused, except "[DONE]", and comments
// lose their text.
//
// It refuses events of more than 1 MiB, text that is not UTF-8, and fields that
// the specification does not know, which a byte order mark makes of the first.
type EventStream struct {
	masker *Masker
	json   *JSON

	event    []byte // the lines of the event so far
	lines    []line
	begin    int  // where in event the current line begins
	returned bool // the last byte was a carriage return that ended a line

	payload  []byte
	document []byte // the payload masked, when it is JSON
	out      []byte
	masked   int64
	err      error
}

// A line is event[start:end], followed by its line ending up to next.
type line struct {
	start, end, next int
	data             bool
}

// NewEventStream returns a Writer for server-sent events.
func (m *Masker) NewEventStream() *EventStream {
	return &EventStream{masker: m, json: m.NewJSON()}
}

// Masked returns how many values were replaced so far.
func (e *EventStream) Masked() int64 { return e.masked + e.json.masked }

// Write takes the next piece of the stream.
func (e *EventStream) Write(p []byte) ([]byte, error) {
	e.out = e.out[:0]
	for len(p) > 0 && e.err == nil {
		p = e.take(p)
	}
	if e.err != nil {
		return nil, e.err
	}
	return e.out, nil
}

// Close says that the stream is over. An event that was not finished is masked
// like the others.
func (e *EventStream) Close() ([]byte, error) {
	e.out = e.out[:0]
	if e.err == nil && e.begin < len(e.event) {
		e.endLine(len(e.event))
	}
	if e.err == nil {
		e.flush()
	}
	if e.err != nil {
		return nil, e.err
	}
	e.err = errors.New("event stream: write after close")
	return e.out, nil
}

// take reads p up to the end of a line and returns the rest.
func (e *EventStream) take(p []byte) []byte {
	if e.returned {
		e.returned = false
		if p[0] == '\n' {
			e.lineFeed()
			return p[1:]
		}
	}
	n := bytes.IndexAny(p, "\r\n")
	if n < 0 {
		n = len(p)
	}
	if len(e.event)+n+2 > maxEvent {
		e.err = fmt.Errorf("event stream: event of more than %d bytes", maxEvent)
		return nil
	}
	e.event = append(e.event, p[:n]...)
	if n == len(p) {
		return nil
	}
	e.event = append(e.event, p[n])
	e.returned = p[n] == '\r'
	e.endLine(len(e.event) - 1)
	return p[n+1:]
}

// lineFeed takes the \n after a \r that already ended its line.
func (e *EventStream) lineFeed() {
	if len(e.lines) == 0 { // the event went out with the \r
		e.out = append(e.out, '\n')
		return
	}
	e.event = append(e.event, '\n')
	e.begin++
	e.lines[len(e.lines)-1].next++
}

// endLine comes when the text of the current line ends at end.
func (e *EventStream) endLine(end int) {
	l := line{start: e.begin, end: end, next: len(e.event)}
	e.begin = len(e.event)
	text := e.event[l.start:l.end]
	if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
		e.err = errors.New("event stream: not UTF-8 text")
		return
	}
	name, _, _ := bytes.Cut(text, []byte(":"))
	switch string(name) {
	case "data":
		l.data = true
	case "", "event", "id", "retry":
	default:
		e.err = errors.New("event stream: unknown field")
		return
	}
	e.lines = append(e.lines, l)
	if len(text) == 0 {
		e.flush()
	}
}

// flush writes the event.
func (e *EventStream) flush() {
	e.payload = e.payload[:0]
	count := 0
	for _, l := range e.lines {
		if l.data {
			if count++; count > 1 {
				e.payload = append(e.payload, '\n')
			}
			e.payload = append(e.payload, e.value(l)...)
		}
	}
	payload, changed, err := e.mask(e.payload)
	if err != nil {
		e.err = fmt.Errorf("event stream: payload: %w", err)
		return
	}
	written := false
	for _, l := range e.lines {
		switch {
		case l.data && changed:
			if !written {
				written = true
				e.writeData(payload, e.event[l.end:l.next])
			}
		case l.data:
			e.out = append(e.out, e.event[l.start:l.next]...)
		default:
			e.writeOther(l)
		}
	}
	e.event, e.lines, e.begin = e.event[:0], e.lines[:0], 0
}

// value returns what follows the colon of a field, and one space after it.
func (e *EventStream) value(l line) []byte {
	_, value, _ := bytes.Cut(e.event[l.start:l.end], []byte(":"))
	return bytes.TrimPrefix(value, []byte(" "))
}

// mask masks one payload.
func (e *EventStream) mask(payload []byte) (out []byte, changed bool, err error) {
	if len(payload) == 0 {
		return payload, false, nil
	}
	e.json.reset()
	before := e.json.masked
	if out, err = e.json.Write(payload); err == nil {
		e.document = append(e.document[:0], out...)
		out, err = e.json.Close()
		e.document = append(e.document, out...)
	}
	if err == nil {
		return e.document, e.json.masked != before, nil
	}
	e.json.masked = before
	if e.masker.Fields() && string(bytes.TrimSpace(payload)) != "[DONE]" {
		return nil, false, err
	}
	out, changed = e.text(payload)
	return out, changed, nil
}

func (e *EventStream) text(b []byte) (out []byte, changed bool) {
	if e.masker.detectors == nil {
		return b, false
	}
	out, n := e.masker.detectors.mask(b)
	e.masked += n
	return out, n > 0
}

// writeData writes payload as data lines.
func (e *EventStream) writeData(payload, eol []byte) {
	if len(eol) == 0 {
		eol = []byte("\n")
	}
	for l := range bytes.SplitSeq(payload, []byte("\n")) {
		e.out = append(e.out, "data: "...)
		e.out = append(e.out, l...)
		e.out = append(e.out, eol...)
	}
}

// writeOther writes a line that is not data. Of a comment only the colon is
// left where JSON fields are masked.
func (e *EventStream) writeOther(l line) {
	text := e.event[l.start:l.end]
	if e.masker.Fields() && len(text) > 0 && text[0] == ':' {
		text = text[:1]
	}
	text, _ = e.text(text)
	e.out = append(e.out, text...)
	e.out = append(e.out, e.event[l.end:l.next]...)
}
