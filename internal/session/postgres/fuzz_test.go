package postgres

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// FuzzFrontend feeds a session's inbox and decoders with what a client may
// send. Nothing may panic, and nothing may be taken beyond its bound.
func FuzzFrontend(f *testing.F) {
	messages := []pgproto3.FrontendMessage{
		&pgproto3.Query{String: "select 1"}, parse("s", "select $1"), bind("p", "s", "x"), execute("p"),
		&pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Close{ObjectType: 'P', Name: "p"}, syncMessage, &pgproto3.Flush{}, &pgproto3.Terminate{},
	}
	var all []byte
	for _, m := range messages {
		b, err := m.Encode(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		all = append(all, b...)
	}
	f.Add(all)
	f.Add([]byte{'Q', 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{'B', 0, 0, 0, 10, 0, 0, 0xff, 0xff, 0xff, 0xff})
	const bound = 4096
	f.Fuzz(func(t *testing.T, sent []byte) {
		in := newInbox(2*bound, bound)
		done := make(chan struct{})
		go func() {
			defer close(done)
			in.receive(bytes.NewReader(sent))
		}()
		taken := 0
		for {
			frame, err := in.next(context.Background())
			if err != nil {
				var fault *frameError
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &fault) {
					t.Fatalf("unexpected error %v", err)
				}
				break
			}
			if len(frame.body) > bound {
				t.Fatalf("a body of %d bytes", len(frame.body))
			}
			taken += 5 + len(frame.body)
			decode(frame)
		}
		<-done
		if taken > len(sent) {
			t.Fatalf("took %d of %d bytes", taken, len(sent))
		}
	})
}

// decode does what the session's handlers do first.
func decode(f frame) {
	switch f.typ {
	case msgParse:
		new(pgproto3.Parse).Decode(f.body)
	case msgBind:
		var b pgproto3.Bind
		if b.Decode(f.body) == nil {
			boundParameters(&b, nil)
		}
	case msgDescribe:
		new(pgproto3.Describe).Decode(f.body)
	case msgExecute:
		new(pgproto3.Execute).Decode(f.body)
	case msgClose:
		new(pgproto3.Close).Decode(f.body)
	}
}

// FuzzStartup does the same with startup parameters.
func FuzzStartup(f *testing.F) {
	f.Add([]byte("user\x00a\x00database\x00b\x00\x00"))
	f.Add([]byte("user\x00a\x00user\x00b\x00\x00"))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		params, err := startupParameters(body)
		if err != nil {
			return
		}
		settings, err := clientSettings(params)
		if err != nil {
			return
		}
		owned := ownedSettings([]string{"public"})
		for name := range settings {
			if name == "search_path" || name == "client_encoding" || name == "standard_conforming_strings" || name == "row_security" {
				t.Errorf("%s of %v can be set", name, owned)
			}
		}
	})
}

// FuzzRow takes a DataRow apart and puts it together again.
func FuzzRow(f *testing.F) {
	f.Add([]byte{0, 2, 0, 0, 0, 1, 'x', 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, body []byte) {
		cells, err := splitRow(body)
		if err != nil {
			return
		}
		if again := joinRow(cells); !bytes.Equal(again, body) {
			t.Errorf("%x became %x", body, again)
		}
	})
}
