package sftp

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// A clerk is a Judge that notes what it is asked, and refuses what holds one of
// its words.
type clerk struct {
	mu      sync.Mutex
	refuse  []string
	read    func(int) error
	asked   []access.SSHCall
	results map[string]Result // by the text of the call
}

func (c *clerk) Decide(_ context.Context, call access.SSHCall) (Verdict, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, call)
	for _, word := range c.refuse {
		if strings.Contains(call.Command, word) {
			return Verdict{Refusal: "not " + word}, nil
		}
	}
	return Verdict{ID: call.Command, Read: c.read}, nil
}

func (c *clerk) Ended(id string, r Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.results == nil {
		c.results = map[string]Result{}
	}
	if _, twice := c.results[id]; twice {
		r.Text = "told twice"
	}
	c.results[id] = r
}

// A session is a filter with a scripted client and a scripted server.
type session struct {
	t               *testing.T
	clerk           *clerk
	toFilter        io.Writer // as the client
	fromFilter      reader    // as the client
	serverSees      chan []byte
	serverSays      io.Writer
	client, server  chan error // what FromClient and FromServer returned
	filter          *Filter
	hangUp, hangSrv func()
}

func newSession(t *testing.T, c *clerk) *session {
	t.Helper()
	s := &session{t: t, clerk: c, serverSees: make(chan []byte, 4096), client: make(chan error, 1), server: make(chan error, 1)}
	clientIn, toFilter := io.Pipe()
	fromFilter, clientOut := io.Pipe()
	serverIn, serverSays := io.Pipe()
	s.toFilter, s.fromFilter, s.serverSays = toFilter, reader{from: fromFilter}, serverSays
	s.filter = New(c, clientOut, frames{s.serverSees})
	s.hangUp, s.hangSrv = func() { toFilter.Close() }, func() { serverSays.Close() }
	go func() { s.client <- s.filter.FromClient(t.Context(), clientIn); clientOut.Close() }()
	go func() { s.server <- s.filter.FromServer(serverIn) }()
	t.Cleanup(func() { toFilter.Close(); serverSays.Close(); fromFilter.Close() })
	return s
}

// frames takes each write as a packet.
type frames struct{ to chan []byte }

func (f frames) Write(p []byte) (int, error) {
	f.to <- append([]byte(nil), p...)
	return len(p), nil
}

func (s *session) greet() {
	s.t.Helper()
	s.send(newPacket(typeInit).uint32(6).done())
	if got := <-s.serverSees; string(got) != string(newPacket(typeInit).uint32(3).done()) {
		s.t.Fatalf("the server gets %q", got)
	}
	p := newPacket(typeVersion).uint32(3).string(extPosixRename).string("1").string("evil@example.com").string("1")
	for _, name := range []string{extStatvfs, extFstatvfs, extHardlink, extFsync, extLsetstat, extLimits, extExpandPath, extCopyData} {
		p = p.string(name).string("1")
	}
	s.say(p.done())
	version := s.receive()
	if version.kind() != typeVersion || strings.Contains(string(version), "evil") || !strings.Contains(string(version), extPosixRename) {
		s.t.Fatalf("the client gets %q", version)
	}
}

// send writes as the client, say as the server, whoever reads it.
func (s *session) send(p []byte) {
	s.t.Helper()
	if _, err := s.toFilter.Write(p); err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) say(p []byte) { go func() { _, _ = s.serverSays.Write(p) }() }

func (s *session) receive() frame {
	s.t.Helper()
	f, err := s.fromFilter.next()
	if err != nil {
		s.t.Fatal(err)
	}
	return append(frame(nil), f...)
}

// exchange sends a request, answers it, and returns what the client gets.
func (s *session) exchange(request []byte, answer packet) frame {
	s.t.Helper()
	s.send(request)
	if got := <-s.serverSees; string(got) != string(request) {
		s.t.Fatalf("the server gets %q, not %q", got, request)
	}
	s.say(answer.done())
	return s.receive()
}

// refused sends a request and returns the status text of its refusal; the
// server must not see it.
func (s *session) refused(request []byte) (code uint32, text string) {
	s.t.Helper()
	s.send(request)
	f := s.receive()
	if f.kind() != typeStatus || binary.BigEndian.Uint32(f.body()) != binary.BigEndian.Uint32(request[5:]) {
		s.t.Fatalf("got %q for %q", f, request)
	}
	if len(s.serverSees) > 0 {
		s.t.Fatalf("the server gets %q", <-s.serverSees)
	}
	c := &cursor{rest: f.body()[4:]}
	return c.uint32(), c.string()
}

func ask(kind byte, id uint32) packet { return newPacket(kind).uint32(id) }

func (p packet) uint64(n uint64) packet { return binary.BigEndian.AppendUint64(p, n) }

func noAttrs(p packet) packet { return p.uint32(0) }

func okStatus(id uint32) packet { return ask(typeStatus, id).uint32(0).string("").string("") }

// opened opens a path and returns the handle.
func (s *session) opened(id uint32, path string, flags uint32) string {
	s.t.Helper()
	h := fmt.Sprintf("h%d", id)
	if f := s.exchange(noAttrs(ask(typeOpen, id).string(path).uint32(flags)).done(), ask(typeHandle, id).string(h)); f.kind() != typeHandle {
		s.t.Fatalf("got %q", f)
	}
	return h
}
