package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

const (
	formatName = "chaperone-recording/1"

	// MaxEventBytes bounds one event, encoded.
	MaxEventBytes = 2 << 20

	// maxLineBytes is an event with everything that a line adds to it.
	maxLineBytes = MaxEventBytes + 512
	maxReplica   = 200
)

// A Hash is the SHA-256 of one exact line, without its newline. The zero Hash
// comes before the first line of a recording.
type Hash [sha256.Size]byte

// String returns 64 lower-case hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText returns String.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads 64 hexadecimal digits.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("hash of %d digits", len(b))
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// A header is the first line of a segment.
type header struct {
	Format  string    `json:"format"`
	Segment uint64    `json:"segment"` // its ordinal, as in its name
	Replica string    `json:"replica"`
	Start   uint64    `json:"start"` // seq of the first event that it holds or will hold
	Prev    Hash      `json:"prev"`
	Time    time.Time `json:"time"`
}

// A head says that the line with this hash was on disk, and that seq was the
// last event up to it.
type head struct {
	Format  string `json:"format"`
	Segment uint64 `json:"segment"`
	Seq     uint64 `json:"seq"`
	Hash    Hash   `json:"hash"`
}

// An entry is what a line of an event says of itself.
type entry struct {
	seq    uint64
	prev   Hash
	synced uint64
	hash   Hash
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const crcSuffix = len(`,"crc":"00000000"}`)

// seal ends the JSON object that starts at buf[start:] and lacks its closing
// brace, and returns the hash of the whole line.
func seal(buf []byte, start int) ([]byte, Hash) {
	sum := crc32.Checksum(buf[start:], castagnoli)
	buf = append(buf, `,"crc":"`...)
	buf = hex.AppendEncode(buf, []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	buf = append(buf, `"}`...)
	return buf, sha256.Sum256(buf[start:])
}

// unseal returns line up to its checksum, when the checksum is right.
func unseal(line []byte) ([]byte, bool) {
	if len(line) <= crcSuffix {
		return nil, false
	}
	body := line[:len(line)-crcSuffix]
	var whole [crcSuffix]byte
	sum := crc32.Checksum(body, castagnoli)
	suffix := append(whole[:0], `,"crc":"`...)
	suffix = hex.AppendEncode(suffix, []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	suffix = append(suffix, `"}`...)
	return body, bytes.Equal(suffix, line[len(body):])
}

// appendEvent appends the line of one event, without its newline. payload is
// what appendPayload made; mark, when not nil, is written as synced.
func appendEvent(buf []byte, seq uint64, prev Hash, mark *uint64, payload []byte) ([]byte, Hash) {
	start := len(buf)
	buf = append(buf, `{"seq":`...)
	buf = strconv.AppendUint(buf, seq, 10)
	buf = append(buf, `,"prev":"`...)
	buf = hex.AppendEncode(buf, prev[:])
	buf = append(buf, '"')
	if mark != nil {
		buf = append(buf, `,"synced":`...)
		buf = strconv.AppendUint(buf, *mark, 10)
	}
	buf = append(buf, ',')
	buf = append(buf, payload[1:len(payload)-1]...)
	return seal(buf, start)
}

// parseEvent reads what the line of an event says of itself. It is strict: a
// line that the recorder would not have written so is none.
func parseEvent(line []byte) (entry, bool) {
	body, ok := unseal(line)
	if !ok {
		return entry{}, false
	}
	var e entry
	if body, ok = bytes.CutPrefix(body, []byte(`{"seq":`)); !ok {
		return entry{}, false
	}
	if e.seq, body, ok = cutUint(body); !ok {
		return entry{}, false
	}
	if body, ok = bytes.CutPrefix(body, []byte(`,"prev":"`)); !ok {
		return entry{}, false
	}
	const digits = 2 * sha256.Size
	if len(body) < digits+2 || body[digits] != '"' || body[digits+1] != ',' {
		return entry{}, false
	}
	if e.prev.UnmarshalText(body[:digits]) != nil {
		return entry{}, false
	}
	body = body[digits+1:]
	if rest, marked := bytes.CutPrefix(body, []byte(`,"synced":`)); marked {
		if e.synced, _, ok = cutUint(rest); !ok {
			return entry{}, false
		}
	}
	e.hash = sha256.Sum256(line)
	return e, true
}

// cutUint cuts a decimal number without sign or leading zeros.
func cutUint(b []byte) (n uint64, rest []byte, ok bool) {
	end := 0
	for end < len(b) && b[end] >= '0' && b[end] <= '9' {
		end++
	}
	if end == 0 || end > 1 && b[0] == '0' {
		return 0, nil, false
	}
	n, err := strconv.ParseUint(string(b[:end]), 10, 64)
	return n, b[end:], err == nil
}

// sealed encodes a header or a head as one line, without newline.
func sealed(v any) ([]byte, Hash, error) {
	b, err := encodeAny(v)
	if err != nil {
		return nil, Hash{}, err
	}
	line, hash := seal(b[:len(b)-1], 0)
	return line, hash, nil
}

// parseSealed reads a line that sealed made into v, and refuses any other
// spelling of the same.
func parseSealed[T header | head](line []byte) (T, Hash, bool) {
	var v T
	body, ok := unseal(line)
	if !ok || json.Unmarshal(append(bytes.Clone(body), '}'), &v) != nil {
		return v, Hash{}, false
	}
	again, hash, err := sealed(v)
	return v, hash, err == nil && bytes.Equal(again, line)
}

func parseHeader(line []byte) (header, Hash, bool) {
	h, hash, ok := parseSealed[header](line)
	return h, hash, ok && h.Format == formatName && h.Start > 0
}

// decodeEvent reads the event of a line that parseEvent accepted.
func decodeEvent(line []byte, seq uint64) (access.Event, error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	var ev access.Event
	if err := dec.Decode(&ev); err != nil {
		return access.Event{}, err
	}
	if ev.Seq != seq {
		return access.Event{}, errors.New("the line gives two sequence numbers")
	}
	return ev, nil
}
