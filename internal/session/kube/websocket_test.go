package kube

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// readAll reads all pieces, messages put together.
func readAll(r *wsReader) (messages []string, err error) {
	var whole []byte
	for {
		p, err := r.next()
		if err != nil {
			return messages, err
		}
		whole = append(whole, p.bytes...)
		if p.last {
			messages, whole = append(messages, string(whole)), nil
		}
	}
}

func TestFramesComeThroughHoweverTheyAreCut(t *testing.T) {
	t.Parallel()
	for _, masked := range []bool{false, true} {
		var wire bytes.Buffer
		w := &wsWriter{to: &wire, masked: masked}
		long := string(bytes.Repeat([]byte("ab\x00"), 30_000))
		want := []string{"", "x", long[:200], long, "ping"}
		for _, m := range want[:4] {
			if err := w.frame(opBinary, []byte(m)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.frame(opPing, []byte("ping")); err != nil {
			t.Fatal(err)
		}
		for name, from := range map[string]io.Reader{"whole": bytes.NewReader(wire.Bytes()), "by byte": iotest.OneByteReader(bytes.NewReader(wire.Bytes()))} {
			got, err := readAll(&wsReader{from: from, masked: masked})
			if !errors.Is(err, io.EOF) || len(got) != len(want) {
				t.Fatalf("%s, masked %t: %d messages, %v", name, masked, len(got), err)
			}
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("%s, masked %t: message %d is %.20q", name, masked, i, got[i])
				}
			}
		}
	}
}

func TestFragmentsAreOneMessage(t *testing.T) {
	t.Parallel()
	wire := []byte{0x02, 0, 0x00, 1, 'a', 0x89, 1, 'p', 0x00, 0, 0x80, 1, 'b', 0x82, 1, 'c'}
	r := &wsReader{from: bytes.NewReader(wire)}
	for i, want := range []struct {
		opcode      byte
		first, last bool
		bytes       string
	}{{opBinary, true, false, "a"}, {opPing, true, true, "p"}, {opBinary, false, true, "b"}, {opBinary, true, true, "c"}} {
		p, err := r.next()
		if err != nil || p.opcode != want.opcode || p.first != want.first || p.last != want.last || string(p.bytes) != want.bytes {
			t.Fatalf("piece %d: %+v, %v; want %+v", i, p, err, want)
		}
	}
}

func TestHostileFrames(t *testing.T) {
	t.Parallel()
	for name, wire := range map[string][]byte{
		"an extension":           {0xc2, 0},
		"a masked server":        {0x82, 0x80, 0, 0, 0, 0},
		"an unknown opcode":      {0x83, 0},
		"a long ping":            {0x89, 126, 0, 126},
		"a ping in parts":        {0x09, 0},
		"a stray continuation":   {0x80, 0},
		"a message in a message": {0x02, 0, 0x82, 0},
		"an endless frame":       {0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0},
		"a large frame":          {0x82, 127, 0, 0, 0, 0, 0x01, 0, 0, 1},
		"a close of one byte":    {0x88, 1, 3},
		"a close code of none":   {0x88, 2, 0x03, 0xed},
		"a reason in no UTF-8":   {0x88, 3, 0x03, 0xe8, 0xff},
	} {
		if _, err := readAll(&wsReader{from: bytes.NewReader(wire)}); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := readAll(&wsReader{from: bytes.NewReader([]byte{0x82, 0}), masked: true}); !errors.Is(err, errProtocol) {
		t.Errorf("a client that does not mask: %v", err)
	}
	for name, wire := range map[string][]byte{"a cut head": {0x82}, "a cut length": {0x82, 126, 0}, "a cut payload": {0x82, 2, 'a'}} {
		if _, err := readAll(&wsReader{from: bytes.NewReader(wire)}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzFrames holds the readers to their bounds, and to what they return being
// what a writer would have written.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0x82, 3, 1, 'h', 'i', 0x88, 2, 0x03, 0xe8}, false)
	f.Add([]byte{0x02, 0x81, 1, 2, 3, 4, 5, 0x80, 0x80, 1, 2, 3, 4}, true)
	f.Add([]byte{0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 2, 'h', 'i'}, false)
	f.Fuzz(func(t *testing.T, wire []byte, masked bool) {
		messages, err := readAll(&wsReader{from: bytes.NewReader(wire), masked: masked})
		if err == nil {
			t.Fatal("no end")
		}
		total := 0
		for _, m := range messages {
			total += len(m)
		}
		if total > len(wire) {
			t.Fatalf("%d bytes out of %d", total, len(wire))
		}
		r := &spdyReader{from: bytes.NewReader(wire)}
		for {
			h, err := r.header()
			if err != nil {
				return
			}
			if !h.control {
				for p, err := r.piece(); p != nil || err != nil; p, err = r.piece() {
					if err != nil {
						return
					}
				}
				continue
			}
			body, err := r.body(h)
			if err != nil {
				return
			}
			if h.kind == synStream {
				if _, err := r.block(body[10:]); err != nil {
					return
				}
			}
		}
	})
}
