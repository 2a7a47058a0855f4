package sftp

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

// A Content is what was read or written through one handle. SHA256 is of the
// bytes when they went from the beginning to the end in order. Otherwise
// Scattered is set, and it is of the ordered beginning, followed by each further
// piece with its offset and length (8 bytes each, big endian) before it. It is
// "" when nothing passed the gateway.
type Content struct {
	Bytes     int64
	SHA256    string
	Scattered bool
}

// A digest sums up content as it passes.
type digest struct {
	sum       hash.Hash
	bytes     uint64
	scattered bool
}

func (d *digest) add(offset uint64, piece []byte) {
	if len(piece) == 0 {
		return
	}
	if d.sum == nil {
		d.sum = sha256.New()
	}
	if d.scattered = d.scattered || offset != d.bytes; d.scattered {
		var at [16]byte
		binary.BigEndian.PutUint64(at[:], offset)
		binary.BigEndian.PutUint64(at[8:], uint64(len(piece)))
		d.sum.Write(at[:])
	}
	d.sum.Write(piece)
	d.bytes += uint64(len(piece))
}

func (d *digest) content() Content {
	c := Content{Bytes: int64(d.bytes), Scattered: d.scattered}
	if d.sum != nil {
		c.SHA256 = hex.EncodeToString(d.sum.Sum(nil))
	}
	return c
}
