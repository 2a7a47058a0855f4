package kube

import (
	"cmp"
	"context"
	"encoding/binary"
	"io"
	"regexp"
	"slices"
	"sync"

	"chaperone.dev/chaperone/internal/access"
)

// A streams relay carries exec, attach and port-forward over SPDY/3.1: all
// streams are the client's, and say in a header what they are for.
type streams struct {
	flow       *flow
	fromClient *spdyReader
	toClient   *spdyWriter
	fromTarget *spdyReader
	toTarget   *spdyWriter
	goodbye    func(d *access.Denial) // what is below SPDY tells the client

	sizes sizes // input's

	mu   sync.Mutex
	last uint32 // id of the last stream
	open map[uint32]*spdyStream
}

type spdyStream struct {
	kind   string // error, stdin, stdout, stderr, resize, data
	port   string
	output *output // nil: nothing comes, or only why a port cannot be reached
	client bool    // has no more to send
	target bool    // the same
}

// maxOpen bounds the streams that are open at once.
const maxOpen = 1024

func (f *flow) streams(client, target io.ReadWriter, goodbye func(*access.Denial)) relay {
	return &streams{flow: f, goodbye: goodbye, open: map[uint32]*spdyStream{},
		fromClient: &spdyReader{from: client}, toClient: &spdyWriter{to: client},
		fromTarget: &spdyReader{from: target}, toTarget: &spdyWriter{to: target}}
}

func (s *streams) input(ctx context.Context) error {
	for {
		h, err := s.fromClient.header()
		if err != nil {
			return gone(err)
		}
		if h.control {
			err = s.controlIn(h)
		} else {
			err = s.dataIn(ctx, h)
		}
		if err != nil {
			return gone(err)
		}
	}
}

func (s *streams) controlIn(h spdyFrame) error {
	body, err := s.fromClient.body(h)
	if err != nil {
		return err
	}
	switch h.kind {
	case synStream:
		if err := s.begin(h, body); err != nil {
			return err
		}
	case rstStream:
		s.end(binary.BigEndian.Uint32(body))
	case ping, goAway:
	case settings, windowUpdate: // neither side counts
		return nil
	default:
		return broken("the client sends a control frame of kind %d", h.kind)
	}
	_ = s.toTarget.forward(h, body) // it may have ended; what it still says is on its way
	return nil
}

// kinds are the streams that there are.
var kinds = map[bool][]string{false: {"error", "stdin", "stdout", "stderr", "resize"}, true: {"error", "data"}}

var portNumber = regexp.MustCompile(`^[0-9]{1,5}$`)

// begin takes the stream that the client opens.
func (s *streams) begin(h spdyFrame, body []byte) error {
	headers, err := s.fromClient.block(body[10:])
	if err != nil {
		return err
	}
	id, forwards := binary.BigEndian.Uint32(body), s.flow.forwards()
	st := &spdyStream{kind: headers["streamtype"], port: headers["port"], client: h.flags&flagFin != 0}
	for name := range headers {
		if name != "streamtype" && !(forwards && (name == "port" || name == "requestid")) {
			return broken("a stream with the header %q", name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case h.flags&^flagFin != 0 || id>>31 != 0 || id%2 == 0 || id <= s.last:
		return broken("stream %d with flags %#x", id, h.flags)
	case !slices.Contains(kinds[forwards], st.kind):
		return broken("a stream of type %q", st.kind)
	case forwards && !portNumber.MatchString(st.port):
		return broken("a stream to port %q", st.port)
	case len(s.open) >= maxOpen:
		return limitError("more streams are open than may be")
	}
	if !forwards {
		for _, other := range s.open {
			if other.kind == st.kind {
				return broken("a second stream of type %q", st.kind)
			}
		}
	}
	switch {
	case st.kind == "stdout" || st.kind == "stderr":
		st.output = s.flow.output(st.kind)
	case st.kind == "error" && !forwards:
		st.output = s.flow.output("")
	case st.kind == "data":
		st.output = s.flow.output("from " + st.port)
	}
	s.last, s.open[id] = id, st
	return nil
}

// find returns an open stream, nil for one that has ended.
func (s *streams) find(id uint32) (*spdyStream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == 0 || id > s.last {
		return nil, broken("stream %d, which nobody opened", id)
	}
	return s.open[id], nil
}

func (s *streams) end(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, id)
}

// finish notes that one side of a stream has no more to send.
func (s *streams) finish(id uint32, st *spdyStream, client bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if client {
		st.client = true
	} else {
		st.target = true
	}
	if st.client && st.target {
		delete(s.open, id)
	}
}

// dataIn carries a data frame of the client's.
func (s *streams) dataIn(ctx context.Context, h spdyFrame) error {
	st, err := s.find(h.stream)
	if err != nil {
		return err
	}
	for {
		p, err := s.fromClient.piece()
		if err != nil {
			return err
		}
		if p == nil {
			break
		}
		if st == nil { // of a stream that ended meanwhile
			continue
		}
		if err := s.in(ctx, st, p); err != nil {
			return err
		}
		_ = s.toTarget.data(h.stream, 0, p) // it may have ended; what it still says is on its way
	}
	if st != nil && h.flags&flagFin != 0 {
		s.finish(h.stream, st, true)
		_ = s.toTarget.data(h.stream, flagFin, nil) // as above
	}
	return nil
}

func (s *streams) in(ctx context.Context, st *spdyStream, p []byte) error {
	switch {
	case st.client:
		return broken("a stream goes on behind its end")
	case st.kind == "stdin":
		return s.flow.stdin(ctx, access.Stdin, p)
	case st.kind == "data":
		return s.flow.stdin(ctx, "to "+st.port, p)
	case st.kind == "resize":
		return s.sizes.take(p, s.flow.resized(ctx))
	}
	return broken("the client writes to %s", st.kind)
}

func (s *streams) output(ctx context.Context) error {
	for {
		h, err := s.fromTarget.header()
		if ctx.Err() != nil { // the end is another's to tell
			return nil
		}
		if err != nil {
			return cmp.Or(s.flush(ctx), gone(err))
		}
		if h.control {
			err = s.controlOut(ctx, h)
		} else {
			err = s.dataOut(ctx, h)
		}
		if err != nil {
			return err
		}
	}
}

func (s *streams) controlOut(ctx context.Context, h spdyFrame) error {
	body, err := s.fromTarget.body(h)
	if err != nil {
		return err
	}
	switch h.kind {
	case synReply:
		if _, err := s.fromTarget.block(body[4:]); err != nil {
			return err
		}
		if _, err := s.find(binary.BigEndian.Uint32(body)); err != nil || h.flags != 0 {
			return broken("an answer to a stream that nobody opened, or an end in it")
		}
	case rstStream:
		id := binary.BigEndian.Uint32(body)
		st, err := s.find(id)
		if err != nil {
			return err
		}
		if err := s.rest(ctx, id, st); err != nil {
			return err
		}
		s.end(id)
	case ping, goAway:
	case settings, windowUpdate:
		return nil
	default:
		return broken("the API server sends a control frame of kind %d", h.kind)
	}
	return s.toClient.forward(h, body)
}

// dataOut carries a data frame of the target's.
func (s *streams) dataOut(ctx context.Context, h spdyFrame) error {
	st, err := s.find(h.stream)
	if err != nil {
		return err
	}
	for {
		p, err := s.fromTarget.piece()
		if err != nil {
			return err
		}
		if p == nil {
			break
		}
		if st == nil { // of a stream that ended meanwhile
			continue
		}
		if p, err = s.out(ctx, st, p); err != nil {
			return err
		}
		if len(p) == 0 {
			continue
		}
		if err := s.toClient.data(h.stream, 0, p); err != nil {
			return err
		}
	}
	if st == nil || h.flags&flagFin == 0 {
		return nil
	}
	if err := s.rest(ctx, h.stream, st); err != nil {
		return err
	}
	s.finish(h.stream, st, false)
	return s.toClient.data(h.stream, flagFin, nil)
}

func (s *streams) out(ctx context.Context, st *spdyStream, p []byte) ([]byte, error) {
	switch {
	case st.target:
		return nil, broken("a stream goes on behind its end")
	case st.output != nil:
		return st.output.take(ctx, p)
	case st.kind == "error": // of a forwarded port
		return p, nil
	}
	return nil, broken("the API server writes to %s", st.kind)
}

// rest sends what was held back of a stream.
func (s *streams) rest(ctx context.Context, id uint32, st *spdyStream) error {
	if st == nil || st.output == nil {
		return nil
	}
	p, err := st.output.rest(ctx)
	if err != nil || len(p) == 0 {
		return err
	}
	return s.toClient.data(id, 0, p)
}

func (s *streams) flush(ctx context.Context) error {
	for id, st := range s.all() {
		if err := s.rest(ctx, id, st); err != nil {
			return err
		}
	}
	return nil
}

func (s *streams) all() map[uint32]*spdyStream {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[uint32]*spdyStream, len(s.open))
	for id, st := range s.open {
		all[id] = st
	}
	return all
}

// farewell tells a client that knows an error stream why the flow ends, and
// then ends all streams.
func (s *streams) farewell(d *access.Denial) {
	for id, st := range s.all() {
		if st.kind == "error" && !st.target && len(s.flow.status) == 0 {
			_ = s.toClient.data(id, flagFin, s.words(d)) // it may have left
			continue
		}
		_ = s.toClient.control(rstStream, id, cancelled)
	}
	if s.goodbye != nil {
		s.goodbye(d)
	}
}

// words are what a client shows: of a forwarded port, text.
func (s *streams) words(d *access.Denial) []byte {
	if s.flow.forwards() {
		return []byte(d.Text())
	}
	return lastWords(d)
}
