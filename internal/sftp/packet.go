package sftp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Packet types (draft-ietf-secsh-filexfer-02, section 3).
const (
	typeInit          = 1
	typeVersion       = 2
	typeOpen          = 3
	typeClose         = 4
	typeRead          = 5
	typeWrite         = 6
	typeLstat         = 7
	typeFstat         = 8
	typeSetstat       = 9
	typeFsetstat      = 10
	typeOpendir       = 11
	typeReaddir       = 12
	typeRemove        = 13
	typeMkdir         = 14
	typeRmdir         = 15
	typeRealpath      = 16
	typeStat          = 17
	typeRename        = 18
	typeReadlink      = 19
	typeSymlink       = 20
	typeStatus        = 101
	typeHandle        = 102
	typeData          = 103
	typeName          = 104
	typeAttrs         = 105
	typeExtended      = 200
	typeExtendedReply = 201
)

// Status codes (section 7).
const (
	statusOK               = 0
	statusPermissionDenied = 3
	statusFailure          = 4
	statusUnsupported      = 8
)

const protocolVersion = 3

// Bounds of what is read. OpenSSH takes no longer packet, and no longer handle.
const (
	maxPacket  = 256 << 10
	maxHandle  = 256
	maxPath    = 4096
	maxRefusal = 1024 // of the text of a refusal
)

var errMalformed = errors.New("malformed packet")

// A reader reads packets into a buffer of its own, which grows within the bound.
type reader struct {
	from   io.Reader
	buffer []byte
}

// A frame is one whole packet as it was read: length, type and the rest. It is
// valid until the next is read.
type frame []byte

func (f frame) kind() byte   { return f[4] }
func (f frame) body() []byte { return f[5:] }

// next reads a packet. At the end between packets the error is io.EOF.
func (r *reader) next() (frame, error) {
	if r.buffer == nil {
		r.buffer = make([]byte, 4<<10)
	}
	if n, err := io.ReadFull(r.from, r.buffer[:4]); err != nil {
		if n > 0 {
			err = fmt.Errorf("%w: it ends early", errMalformed)
		}
		return nil, err
	}
	n := binary.BigEndian.Uint32(r.buffer)
	if n == 0 || n > maxPacket {
		return nil, fmt.Errorf("%w: of %d bytes", errMalformed, n)
	}
	if whole := int(n) + 4; cap(r.buffer) < whole {
		grown := make([]byte, whole)
		copy(grown, r.buffer[:4])
		r.buffer = grown
	}
	f := r.buffer[:n+4]
	if _, err := io.ReadFull(r.from, f[4:]); err != nil {
		return nil, fmt.Errorf("%w: it ends early", errMalformed)
	}
	return f, nil
}

// A packet is being built.
type packet []byte

func newPacket(kind byte) packet { return packet{0, 0, 0, 0, kind} }

func (p packet) uint32(n uint32) packet { return binary.BigEndian.AppendUint32(p, n) }

func (p packet) string(s string) packet { return append(p.uint32(uint32(len(s))), s...) }

// done fills in the length.
func (p packet) done() []byte {
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	return p
}

func statusPacket(id, code uint32, text string) []byte {
	if len(text) > maxRefusal {
		text = strings.ToValidUTF8(text[:maxRefusal], "")
	}
	return newPacket(typeStatus).uint32(id).uint32(code).string(text).string("").done()
}

// A cursor reads the fields of a packet. After a field that is not there every
// other is empty, and failed is set.
type cursor struct {
	rest   []byte
	failed bool
}

func (c *cursor) take(n uint32) []byte {
	if c.failed || uint64(n) > uint64(len(c.rest)) {
		c.failed, c.rest = true, nil
		return nil
	}
	taken := c.rest[:n]
	c.rest = c.rest[n:]
	return taken
}

func (c *cursor) uint32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if b := c.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) bytes() []byte { return c.take(c.uint32()) }

func (c *cursor) string() string { return string(c.bytes()) }

// path reads a name of a file.
func (c *cursor) path() string {
	b := c.bytes()
	if len(b) > maxPath {
		c.failed = true
		return ""
	}
	return string(b)
}

func (c *cursor) handle() string {
	b := c.bytes()
	if len(b) > maxHandle {
		c.failed = true
	}
	return string(b)
}

// ended reports whether everything was there, and nothing else.
func (c *cursor) ended() bool { return !c.failed && len(c.rest) == 0 }

// Flags of attributes (section 5).
const (
	attrSize        = 1
	attrOwner       = 2
	attrPermissions = 4
	attrTimes       = 8
	attrExtended    = 0x80000000
	attrKnown       = attrSize | attrOwner | attrPermissions | attrTimes | attrExtended
)

// attrs reads attributes and says what they would set.
func (c *cursor) attrs() (text string) {
	flags := c.uint32()
	if flags&^uint32(attrKnown) != 0 {
		c.failed = true
		return ""
	}
	if flags&attrSize != 0 {
		text += fmt.Sprintf(" size=%d", c.uint64())
	}
	if flags&attrOwner != 0 {
		text += fmt.Sprintf(" uid=%d gid=%d", c.uint32(), c.uint32())
	}
	if flags&attrPermissions != 0 {
		text += fmt.Sprintf(" mode=%#o", c.uint32())
	}
	if flags&attrTimes != 0 {
		text += fmt.Sprintf(" atime=%d mtime=%d", c.uint32(), c.uint32())
	}
	if flags&attrExtended != 0 {
		for n := c.uint32(); n > 0 && !c.failed; n-- {
			text += fmt.Sprintf(" %q=%q", c.string(), c.string())
		}
	}
	return text
}
