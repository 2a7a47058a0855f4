package envoy

import (
	"bytes"
	"sync"
)

// maxLine bounds one line of a child's output; what is longer is cut.
const maxLine = 8 << 10

// A lineWriter cuts what is written to it into lines of at most maxLine bytes
// and hands each to emit, without its newline. It is for one writer.
type lineWriter struct {
	emit func(string)
	line []byte
}

// Write never fails.
func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i]
		}
		w.line = append(w.line, part[:min(len(part), maxLine-len(w.line))]...)
		if i < 0 {
			return n, nil
		}
		w.flush()
		p = p[i+1:]
	}
}

func (w *lineWriter) flush() {
	if len(w.line) > 0 {
		w.emit(string(w.line))
		w.line = w.line[:0]
	}
}

// lines keeps the last max lines added to it.
type lines struct {
	max int

	mu   sync.Mutex
	last []string
}

func (l *lines) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.last) == l.max {
		l.last = append(l.last[:0], l.last[1:]...)
	}
	l.last = append(l.last, s)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.last...)
}
