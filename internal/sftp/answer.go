package sftp

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// FromServer carries the server's answers until it sends no more, which is no
// error. Any error means that the session must end.
func (f *Filter) FromServer(server io.Reader) error {
	defer close(f.ended)
	in := reader{from: server}
	for {
		p, err := in.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
		case p.kind() == typeVersion:
			err = f.version(p.body())
		default:
			err = f.answer(p)
		}
		if err != nil {
			return fmt.Errorf("from the server: %w", err)
		}
	}
}

// version passes on the server's version with the extensions that are served.
func (f *Filter) version(body []byte) error {
	c := &cursor{rest: body}
	version := c.uint32()
	p := newPacket(typeVersion).uint32(protocolVersion)
	offered := map[string]bool{}
	for len(c.rest) > 0 && !c.failed {
		name, value := c.string(), c.string()
		if isExtension(name) && !c.failed && !offered[name] {
			offered[name] = true
			p = p.string(name).string(value)
		}
	}
	f.out.Lock()
	defer f.out.Unlock()
	f.mu.Lock()
	fit := f.greeted && !f.versioned && !c.failed && version == protocolVersion
	f.versioned, f.extensions = fit, offered
	f.mu.Unlock()
	if !fit {
		return fmt.Errorf("%w: VERSION", errMalformed)
	}
	return f.tell([][]byte{p.done()})
}

// answer checks one answer against its request and passes it on.
func (f *Filter) answer(reply frame) error {
	kind, c := reply.kind(), &cursor{rest: reply.body()}
	id := c.uint32()
	f.out.Lock()
	defer f.out.Unlock()
	f.mu.Lock()
	p := f.byID[id]
	f.mu.Unlock()
	if c.failed || p == nil || p.refusal != nil {
		return fmt.Errorf("%w: type %d answers nothing", errMalformed, kind)
	}
	a, err := p.read(kind, c)
	if err != nil {
		return err
	}
	if a.bytes > 0 {
		if err := p.pass(a.bytes); err != nil {
			reply, a.data = statusPacket(id, statusPermissionDenied, err.Error()), nil
		}
	}
	f.mu.Lock()
	report, err := f.settle(p, a)
	due := f.due()
	f.mu.Unlock()
	if err != nil {
		return err
	}
	report()
	return f.tell(append([][]byte{reply}, due...))
}

// An answer is one of the server's, decoded.
type answer struct {
	kind   byte
	status uint32
	text   string
	handle string
	name   string // the first of NAME
	data   []byte
	bytes  int // of content
}

// read decodes an answer that fits the request.
func (p *pending) read(kind byte, c *cursor) (*answer, error) {
	a := &answer{kind: kind}
	if !slices.Contains(p.expects(), kind) {
		return nil, fmt.Errorf("%w: type %d answers type %d", errMalformed, kind, p.kind)
	}
	switch kind {
	case typeStatus:
		a.status = c.uint32()
		if len(c.rest) > 0 { // old servers say no more
			a.text = c.string()
			c.string()
		}
		if a.status == statusOK && !p.succeedsByStatus() {
			return nil, fmt.Errorf("%w: success without a result", errMalformed)
		}
	case typeHandle:
		a.handle = c.handle()
	case typeData:
		a.data = c.bytes()
		a.bytes = len(a.data)
		if uint64(len(a.data)) > uint64(p.length) {
			return nil, fmt.Errorf("%w: more data than was asked for", errMalformed)
		}
	case typeName:
		a.names(p, c)
	case typeAttrs:
		c.attrs()
	case typeExtendedReply:
		c.rest = nil // numbers, of which none is a path
	}
	if !c.ended() {
		return nil, fmt.Errorf("%w: type %d", errMalformed, kind)
	}
	return a, nil
}

func (a *answer) names(p *pending, c *cursor) {
	size := len(c.rest)
	n := c.uint32()
	if p.kind != typeReaddir && n != 1 {
		c.failed = true
	}
	for i := range n {
		name := c.string()
		c.string()
		c.attrs()
		if c.failed {
			return
		}
		if i == 0 {
			a.name = name
		}
	}
	if p.kind == typeReaddir {
		a.bytes = size
	}
}

// expects lists the types of answers to the request.
func (p *pending) expects() []byte {
	switch p.kind {
	case typeOpen, typeOpendir:
		return []byte{typeHandle, typeStatus}
	case typeRead:
		return []byte{typeData, typeStatus}
	case typeReaddir, typeRealpath, typeReadlink:
		return []byte{typeName, typeStatus}
	case typeStat, typeLstat, typeFstat:
		return []byte{typeAttrs, typeStatus}
	}
	switch p.extension {
	case extStatvfs, extFstatvfs, extLimits:
		return []byte{typeExtendedReply, typeStatus}
	case extExpandPath:
		return []byte{typeName, typeStatus}
	}
	return []byte{typeStatus}
}

// succeedsByStatus reports whether an OK is all that the request asks for.
func (p *pending) succeedsByStatus() bool { return len(p.expects()) == 1 }

// pass asks whether content may go to the client.
func (p *pending) pass(bytes int) error {
	if len(p.uses) == 0 || p.uses[0].verdict.Read == nil {
		return nil
	}
	return p.uses[0].verdict.Read(bytes)
}

// settle notes what an answer changes, and returns what tells the judge of it.
// f.mu is held.
func (f *Filter) settle(p *pending, a *answer) (report func(), err error) {
	report = func() {}
	p.done = true
	delete(f.byID, p.id)
	result := Result{Status: a.status, Text: a.text}
	switch {
	case a.kind == typeHandle:
		if f.handles[a.handle] != nil {
			return nil, fmt.Errorf("%w: a handle that is open", errMalformed)
		}
		p.opens.verdict = p.verdict
		f.handles[a.handle] = p.opens
		return report, nil
	case p.closes != nil:
		return f.report(p.closes, result), nil
	case a.kind == typeData:
		p.uses[0].downloaded.add(p.offset, a.data)
	case a.kind == typeName && p.isHome() && f.home == "":
		f.home = cleanHome(a.name)
	}
	if p.judged {
		report = func() { f.judge.Ended(p.verdict.ID, result) }
	}
	return report, nil
}
