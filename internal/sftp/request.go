package sftp

import (
	"fmt"
	"strconv"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/shell"
)

// Operations of an SFTP session (access.SSHCall.Operation), besides
// access.OperationRead and access.OperationWrite. An extension goes by its name.
const (
	opList     = "list"
	opStat     = "stat"
	opSetstat  = "setstat"
	opMkdir    = "mkdir"
	opRmdir    = "rmdir"
	opRemove   = "remove"
	opRename   = "rename"
	opReadlink = "readlink"
	opSymlink  = "symlink"
	opRealpath = "realpath"
)

// Extensions that the filter can judge.
const (
	extPosixRename = "posix-rename@openssh.com"
	extStatvfs     = "statvfs@openssh.com"
	extFstatvfs    = "fstatvfs@openssh.com"
	extHardlink    = "hardlink@openssh.com"
	extFsync       = "fsync@openssh.com"
	extLsetstat    = "lsetstat@openssh.com"
	extLimits      = "limits@openssh.com"
	extExpandPath  = "expand-path@openssh.com"
	extCopyData    = "copy-data"
)

func isExtension(name string) bool {
	switch name {
	case extPosixRename, extStatvfs, extFstatvfs, extHardlink, extFsync, extLsetstat, extLimits, extExpandPath, extCopyData:
		return true
	}
	return false
}

// A need is what a handle must have been opened for.
type need uint8

const (
	needAny need = iota
	needRead
	needWrite
	needDir
	needFile
)

// A request is one of the client's, decoded.
type request struct {
	kind      byte
	id        uint32
	extension string

	// Either call says what is asked of paths, or handles are used for what they
	// were opened for. FSETSTAT has both: it is judged by the path of its handle.
	call    *access.SSHCall
	handles []use
	opens   *handle // what the handle will be that the server gives

	offset uint64
	length uint32 // of a READ
	data   []byte // of a WRITE; it is the caller's buffer
}

type use struct {
	handle string
	need   need
}

// Flags of OPEN (section 6.3).
const (
	openRead   = 1
	openWrite  = 2
	openChange = 2 | 4 | 8 | 16 | 32 // write, append, create, truncate, exclusive
	openKnown  = openRead | openChange
)

// decode reads a request of the client's. Paths of calls are not yet known by
// their place; see place.
func decode(kind byte, body []byte) (*request, error) {
	c := &cursor{rest: body}
	r := &request{kind: kind, id: c.uint32()}
	switch kind {
	case typeOpen:
		r.open(c)
	case typeClose:
		r.uses(c, needAny)
	case typeRead:
		r.uses(c, needRead)
		r.offset, r.length = c.uint64(), c.uint32()
	case typeWrite:
		r.uses(c, needWrite)
		r.offset, r.data = c.uint64(), c.bytes()
	case typeFstat:
		r.uses(c, needAny)
	case typeReaddir:
		r.uses(c, needDir)
	case typeFsetstat:
		r.uses(c, needAny)
		r.asks(opSetstat, c.attrs())
	case typeExtended:
		r.extension = c.string()
		r.extended(c)
	default:
		if !r.onPaths(c) {
			return nil, fmt.Errorf("%w: type %d is no request", errMalformed, kind)
		}
	}
	if !c.ended() {
		return nil, fmt.Errorf("%w: type %d", errMalformed, kind)
	}
	return r, nil
}

// asks sets what is asked of paths. More is what the request says beyond them:
// it is part of the text, so that a grant is bound to it too.
func (r *request) asks(operation, more string, paths ...string) *access.SSHCall {
	text := operation
	for _, p := range paths {
		text += " " + strconv.Quote(p)
	}
	r.call = &access.SSHCall{Act: access.ActSFTP, Operation: operation, Command: text + more}
	return r.call
}

func (r *request) uses(c *cursor, what need) { r.handles = append(r.handles, use{c.handle(), what}) }

// open judges by what the server does with flags: without the one to write, it
// opens to read, and still creates or truncates.
func (r *request) open(c *cursor) {
	path, flags, attrs := c.path(), c.uint32(), c.attrs()
	if flags&^uint32(openKnown) != 0 {
		c.failed = true
		return
	}
	r.opens = &handle{reads: flags&openRead != 0 || flags&openWrite == 0, writes: flags&openWrite != 0}
	if flags&openChange == 0 {
		r.asks(access.OperationRead, "", path).Reads = []string{path}
		return
	}
	call := r.asks(access.OperationWrite, fmt.Sprintf(" flags=%#x%s", flags, attrs), path)
	call.Writes = []string{path}
	if r.opens.reads {
		call.Reads = []string{path}
	}
}

// onPaths decodes requests that have only paths and attributes. False: it is
// none of them.
func (r *request) onPaths(c *cursor) bool {
	path := c.path()
	switch r.kind {
	case typeOpendir:
		r.opens = &handle{dir: true}
		r.asks(opList, "", path).Reads = []string{path}
	case typeLstat, typeStat:
		r.asks(opStat, "", path).Reads = []string{path}
	case typeRealpath:
		r.asks(opRealpath, "", path).Reads = []string{path}
	case typeReadlink:
		r.asks(opReadlink, "", path).Reads = []string{path}
	case typeSetstat:
		r.asks(opSetstat, c.attrs(), path).Writes = []string{path}
	case typeMkdir:
		r.asks(opMkdir, c.attrs(), path).Writes = []string{path}
	case typeRemove:
		r.asks(opRemove, "", path).Removes = []string{path}
	case typeRmdir:
		r.asks(opRmdir, "", path).Removes = []string{path}
	case typeRename:
		r.renames(opRename, path, c.path())
	case typeSymlink:
		r.links(opSymlink, path, c.path())
	default:
		return false
	}
	return true
}

func (r *request) renames(operation, from, to string) {
	call := r.asks(operation, "", from, to)
	call.Removes, call.Writes = []string{from}, []string{to}
}

// links counts what a link leads to as read and written, for it can be through
// the link. Which of the two paths of SYMLINK that is depends on the server:
// OpenSSH has them the other way around than the draft. A relative one is
// relative to the link.
func (r *request) links(operation, one, other string) {
	call := r.asks(operation, "", one, other)
	for _, p := range []string{one, other} {
		if operation == opSymlink && !strings.HasPrefix(p, "/") {
			call.UnknownPaths = append(call.UnknownPaths, "a link to a relative path")
			return
		}
	}
	call.Reads, call.Writes = []string{one, other}, []string{one, other}
}

func (r *request) extended(c *cursor) {
	switch r.extension {
	case extPosixRename:
		r.renames(opRename, c.path(), c.path())
	case extHardlink:
		r.links(extHardlink, c.path(), c.path())
	case extStatvfs:
		path := c.path()
		r.asks(opStat, "", path).Reads = []string{path}
	case extLsetstat:
		path := c.path()
		r.asks(opSetstat, c.attrs(), path).Writes = []string{path}
	case extExpandPath:
		path := c.path()
		r.asks(opRealpath, "", path).Reads = []string{path}
	case extFstatvfs:
		r.uses(c, needAny)
	case extFsync:
		r.uses(c, needFile)
	case extCopyData:
		r.uses(c, needRead)
		c.uint64()
		c.uint64()
		r.uses(c, needWrite)
		c.uint64()
	case extLimits:
	default:
		c.rest = nil // it is answered here, whatever is in it
	}
}

// place turns the paths of a call into the names that conditions know. home is
// the server's answer to where a client begins, "" while it is not known.
func place(call *access.SSHCall, home string, expands bool) {
	for _, list := range []*[]string{&call.Reads, &call.Writes, &call.Removes} {
		var placed []string
		for _, p := range *list {
			if p == "" {
				p = "." // to a server it is the same
			}
			if strings.HasPrefix(p, "~") && !expands {
				p = "./" + p // to a server a name like any other
			}
			name, err := shell.Path(p)
			switch {
			case err != nil:
				call.UnknownPaths = append(call.UnknownPaths, err.Error())
				continue
			case home != "" && strings.HasPrefix(name, "~"):
				name = strings.TrimSuffix(home, "/") + name[1:]
				if name == "" {
					name = "/"
				}
			}
			placed = append(placed, name)
		}
		*list = placed
	}
	call.ReadOnly = len(call.Writes)+len(call.Removes)+len(call.UnknownPaths) == 0
}
