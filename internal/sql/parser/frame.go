package parser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// A frame is what crosses the pipes or the socket, both ways:
//
//	length uint32 of what follows | id uint64 | kind byte | payload
//
// An answer carries the id of its request. A worker sends one ready frame with
// id 0 first, on every connection.
type frame struct {
	id      uint64
	kind    frameKind
	payload []byte
}

type frameKind byte

const (
	frameReady   frameKind = 'R' // worker: warm; its process id uint32
	frameParse   frameKind = 'P' // pool: text
	frameTree    frameKind = 'T' // worker: shape, tokens, tree
	frameRefused frameKind = 'E' // worker: position uint32, SQLSTATE (5 bytes), message
	frameFault   frameKind = 'F' // worker: the grammar failed; this worker must not be used again
)

const (
	frameHeader = 4 + 8 + 1
	maxAnswer   = 64 << 20 // bytes; 64 KiB of text make about 1 MiB
	tokenBytes  = 16
)

var errFrame = errors.New("malformed frame")

func writeFrame(w io.Writer, f frame) error {
	b := make([]byte, frameHeader, frameHeader+len(f.payload))
	binary.BigEndian.PutUint32(b, uint32(8+1+len(f.payload)))
	binary.BigEndian.PutUint64(b[4:], f.id)
	b[12] = byte(f.kind)
	_, err := w.Write(append(b, f.payload...))
	return err
}

func readFrame(r io.Reader, limit int) (frame, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	n := int(binary.BigEndian.Uint32(head[:])) - 9
	if n < 0 || n > limit {
		return frame{}, fmt.Errorf("%w: length %d", errFrame, n)
	}
	f := frame{id: binary.BigEndian.Uint64(head[4:]), kind: frameKind(head[12]), payload: make([]byte, n)}
	_, err := io.ReadFull(r, f.payload)
	return f, err
}

func refusedPayload(e *Error) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(max(0, e.Position)))
	b = append(b, (e.SQLState + "     ")[:5]...)
	return append(b, e.Message...)
}

func parseRefused(b []byte) (*Error, error) {
	if len(b) < 9 {
		return nil, errFrame
	}
	return &Error{Position: int(binary.BigEndian.Uint32(b)), SQLState: string(b[4:9]), Message: string(b[9:])}, nil
}

// treePayload is: number of tokens, the tokens, the tree.
func treePayload(tokens []Token, tree []byte) []byte {
	b := make([]byte, 0, 4+len(tokens)*tokenBytes+len(tree))
	b = binary.BigEndian.AppendUint32(b, uint32(len(tokens)))
	for _, t := range tokens {
		b = binary.BigEndian.AppendUint32(b, uint32(t.Start))
		b = binary.BigEndian.AppendUint32(b, uint32(t.End))
		b = binary.BigEndian.AppendUint32(b, uint32(t.Kind))
		b = binary.BigEndian.AppendUint32(b, uint32(t.Keyword))
	}
	return append(b, tree...)
}

// parseTree reads a tree payload and checks that the tokens lie inside text, in
// order and without overlap.
func parseTree(text string, b []byte) (tokens []Token, tree []byte, err error) {
	if len(b) < 4 {
		return nil, nil, errFrame
	}
	n := int(binary.BigEndian.Uint32(b))
	b = b[4:]
	if n > maxTokens || n*tokenBytes > len(b) {
		return nil, nil, fmt.Errorf("%w: %d tokens", errFrame, n)
	}
	tokens = make([]Token, n)
	for i := range tokens {
		t := b[i*tokenBytes:]
		tokens[i] = Token{
			Start: int32(binary.BigEndian.Uint32(t)), End: int32(binary.BigEndian.Uint32(t[4:])),
			Kind: pg.Token(binary.BigEndian.Uint32(t[8:])), Keyword: pg.KeywordKind(binary.BigEndian.Uint32(t[12:])),
		}
	}
	if err := inOrder(text, tokens); err != nil {
		return nil, nil, err
	}
	return tokens, b[n*tokenBytes:], nil
}

func inOrder(text string, tokens []Token) error {
	var end int32
	for _, t := range tokens {
		if t.Start < end || t.End <= t.Start || int(t.End) > len(text) {
			return fmt.Errorf("%w: token %d–%d", errFrame, t.Start, t.End)
		}
		end = t.End
	}
	return nil
}
