package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"sync"

	"chaperone.dev/chaperone/internal/access"
)

// Bounds of one session. A client that asks more than maxPending waits.
const (
	maxPending = 1024
	maxHandles = 1024
)

// A Judge says what may happen. Its methods are called by the two goroutines of
// a Filter, and may block; what a client sends after the request waits meanwhile.
type Judge interface {
	// Decide is asked before a request reaches the server. The call is whole but
	// for its User and Environment. An error ends the session.
	Decide(ctx context.Context, call access.SSHCall) (Verdict, error)
	// Ended is told, once for each request that Decide let through, what became
	// of it: of a file that was opened, when it is closed or the session ends.
	Ended(id string, r Result)
}

// A Verdict is the answer to one request.
type Verdict struct {
	ID string // by which Ended will name it
	// Refusal, when not "", is what the client is told; the server is not.
	Refusal string
	// Read is asked before so many bytes of a file or a listing pass to the
	// client; its error is what the client is told instead. nil lets them pass.
	Read func(bytes int) error
}

// A Result is what became of a request.
type Result struct {
	Status uint32 // the server's status code; 0 is success
	Text   string // that came with it
	// Read and Written are what passed through the handle of an opened file.
	Read, Written Content
	Copied        bool // the server wrote more to it than passed the gateway
	Cut           bool // the session ended before it was answered or closed
}

// A Filter stands between one client and one server. FromClient and FromServer
// run at the same time, each in a goroutine of the caller's; Close comes after
// both have returned.
type Filter struct {
	judge          Judge
	server, client io.Writer

	slots chan struct{} // one taken for each pending request
	ended chan struct{} // closed when FromServer returns
	out   sync.Mutex    // held while writing to the client, so that order is kept

	mu         sync.Mutex
	greeted    bool // the client has sent INIT
	versioned  bool // the server has answered it
	home       string
	extensions map[string]bool // that the server offered
	pending    []*pending      // in the order of the client's requests
	byID       map[uint32]*pending
	handles    map[string]*handle
}

// A handle is an open file or directory.
type handle struct {
	verdict             Verdict
	path                string
	dir, reads, writes  bool
	copied, reported    bool
	downloaded, written digest
}

// A pending request awaits its answer, or, when it is refused, its turn.
type pending struct {
	*request
	verdict Verdict
	judged  bool
	uses    []*handle
	closes  *handle
	refusal []byte
	done    bool
}

// New returns a filter that writes to both sides.
func New(judge Judge, client, server io.Writer) *Filter {
	return &Filter{
		judge: judge, client: client, server: server,
		slots: make(chan struct{}, maxPending), ended: make(chan struct{}),
		byID: map[uint32]*pending{}, handles: map[string]*handle{}, extensions: map[string]bool{},
	}
}

// FromClient carries the client's requests until it sends no more, which is no
// error; the caller then closes the server's input. Any error means that the
// session must end.
func (f *Filter) FromClient(ctx context.Context, client io.Reader) error {
	in := reader{from: client}
	for {
		p, err := in.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
		case p.kind() == typeInit:
			err = f.greet(p.body())
		default:
			err = f.request(ctx, p)
		}
		if err != nil {
			return fmt.Errorf("from the client: %w", err)
		}
	}
}

// greet asks the server for version 3, whatever the client could speak.
func (f *Filter) greet(body []byte) error {
	c := &cursor{rest: body}
	version := c.uint32()
	f.mu.Lock()
	again := f.greeted
	f.greeted = true
	f.mu.Unlock()
	switch {
	case c.failed || again:
		return fmt.Errorf("%w: INIT", errMalformed)
	case version < protocolVersion:
		return fmt.Errorf("version %d is not served", version)
	}
	return f.send(newPacket(typeInit).uint32(protocolVersion).done())
}

func (f *Filter) send(p []byte) error {
	if _, err := f.server.Write(p); err != nil {
		return fmt.Errorf("to the server: %w", err)
	}
	return nil
}

// request judges one request and forwards it, or puts its refusal in line.
func (f *Filter) request(ctx context.Context, frame frame) error {
	r, err := decode(frame.kind(), frame.body())
	if err != nil {
		return err
	}
	select {
	case f.slots <- struct{}{}:
	case <-f.ended:
		return io.ErrClosedPipe
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	p := &pending{request: r}
	code, refusal, err := f.check(p)
	if err != nil {
		return err
	}
	if refusal == "" && r.call != nil {
		if p.verdict, err = f.judge.Decide(ctx, *r.call); err != nil {
			return err
		}
		code, refusal = statusPermissionDenied, p.verdict.Refusal
		p.judged = refusal == ""
	}
	if refusal != "" {
		p.refusal = statusPacket(r.id, code, refusal)
		return f.refuse(p)
	}
	f.mu.Lock()
	f.admit(p)
	f.mu.Unlock()
	return f.send(frame)
}

// check finds what cannot be asked for at all, and places the paths of the rest.
func (f *Filter) check(p *pending) (code uint32, refusal string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.versioned {
		return 0, "", fmt.Errorf("%w: a request before the version", errMalformed)
	}
	if f.byID[p.id] != nil {
		return 0, "", fmt.Errorf("%w: request %d twice", errMalformed, p.id)
	}
	if p.kind == typeExtended && !(isExtension(p.extension) && f.extensions[p.extension]) {
		return statusUnsupported, "the extension is not served", nil
	}
	if p.opens != nil && len(f.handles) >= maxHandles {
		return statusFailure, "too many files are open", nil
	}
	for _, u := range p.handles {
		h := f.handles[u.handle]
		if h == nil {
			return statusFailure, "no such handle", nil
		}
		if !h.serves(u.need) {
			return statusPermissionDenied, h.path + " was not opened for that", nil
		}
		p.uses = append(p.uses, h)
	}
	if p.call != nil {
		if p.kind == typeFsetstat {
			p.call.Writes = []string{p.uses[0].path}
			p.call.Command += fmt.Sprintf(" of %q", p.uses[0].path)
		}
		if p.opens != nil {
			p.opens.path = append(p.call.Reads, p.call.Writes...)[0]
		}
		place(p.call, f.home, p.extension == extExpandPath)
	}
	return 0, "", nil
}

func (h *handle) serves(what need) bool {
	switch what {
	case needRead:
		return h.reads
	case needWrite:
		return h.writes
	case needDir:
		return h.dir
	case needFile:
		return !h.dir
	}
	return true
}

// admit notes a request that is about to be forwarded. f.mu is held.
func (f *Filter) admit(p *pending) {
	f.pending = append(f.pending, p)
	f.byID[p.id] = p
	switch {
	case p.kind == typeClose:
		p.closes = p.uses[0]
		delete(f.handles, p.handles[0].handle)
	case p.kind == typeWrite:
		p.uses[0].written.add(p.offset, p.data)
	case p.extension == extCopyData:
		p.uses[1].copied = true
	}
	p.data = nil // it is the caller's
}

// refuse answers a request here, after the answers to those before it.
func (f *Filter) refuse(p *pending) error {
	f.out.Lock()
	defer f.out.Unlock()
	f.mu.Lock()
	f.pending = append(f.pending, p)
	f.byID[p.id] = p
	due := f.due()
	f.mu.Unlock()
	return f.tell(due)
}

// due takes answered requests off the line, and returns the refusals whose turn
// has come. f.mu is held.
func (f *Filter) due() (refusals [][]byte) {
	for len(f.pending) > 0 {
		p := f.pending[0]
		if p.refusal == nil && !p.done {
			break
		}
		if p.refusal != nil {
			refusals = append(refusals, p.refusal)
			delete(f.byID, p.id)
		}
		<-f.slots
		f.pending[0] = nil
		f.pending = f.pending[1:]
	}
	return refusals
}

// tell writes to the client. f.out is held.
func (f *Filter) tell(packets [][]byte) error {
	for _, p := range packets {
		if _, err := f.client.Write(p); err != nil {
			return fmt.Errorf("to the client: %w", err)
		}
	}
	return nil
}

// Close reports what is still open or unanswered.
func (f *Filter) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pending {
		switch {
		case p.closes != nil:
			f.report(p.closes, Result{Cut: true})()
		case p.judged && !p.done:
			f.judge.Ended(p.verdict.ID, Result{Cut: true})
		}
	}
	for _, h := range f.handles {
		f.report(h, Result{Cut: true})()
	}
}

// report returns what tells the judge what passed through a handle, once. f.mu
// is held.
func (f *Filter) report(h *handle, r Result) (tell func()) {
	if h.reported {
		return func() {}
	}
	h.reported = true
	r.Read, r.Written, r.Copied = h.downloaded.content(), h.written.content(), h.copied
	return func() { f.judge.Ended(h.verdict.ID, r) }
}

// isHome reports whether a request asks where the client begins.
func (p *pending) isHome() bool {
	return p.kind == typeRealpath && (p.call.Command == opRealpath+` "."` || p.call.Command == opRealpath+` ""`)
}

// cleanHome returns a path that can stand for the home directory, or "".
func cleanHome(name string) string {
	if path.IsAbs(name) && path.Clean(name) == name && len(name) <= maxPath {
		return name
	}
	return ""
}
