package postgres

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/sql"
)

// FuzzFrontend feeds a session's inbox and decoders with what a client may
// send. Nothing may panic, and nothing may be taken beyond its bound.
func FuzzFrontend(f *testing.F) {
	messages := []pgproto3.FrontendMessage{
		&pgproto3.Query{String: "select 1"}, parse("s", "select $1"), bind("p", "s", "x"), execute("p"),
		&pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Close{ObjectType: 'P', Name: "p"}, syncMessage, &pgproto3.Flush{}, &pgproto3.Terminate{},
		&pgproto3.CopyData{Data: []byte("1\t2\n")}, &pgproto3.CopyDone{}, &pgproto3.CopyFail{Message: "no"},
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
		in := newInbox(newSource(bytes.NewReader(sent), new(buffers)), 2*bound, bound)
		if len(sent)%2 == 0 { // otherwise the session reads by itself
			in.pin()
		}
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
		in.readers.Wait()
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

// FuzzSession lets a client send anything, in any order, to a session with a
// real target. It may lose its own session, and nobody else's.
func FuzzSession(f *testing.F) {
	encode := func(msgs ...pgproto3.FrontendMessage) (b []byte) {
		for _, m := range msgs {
			var err error
			if b, err = m.Encode(b); err != nil {
				f.Fatal(err)
			}
		}
		return b
	}
	f.Add(encode(&pgproto3.Query{String: "begin; select 1"}, &pgproto3.CopyDone{}, parse("s", "select $1"), bind("p", "s", "x"), execute("p"), execute("p"), syncMessage))
	f.Add(encode(&pgproto3.CopyData{Data: []byte("x")}, syncMessage, bind("p", "s"), &pgproto3.Flush{}, &pgproto3.Query{String: "select 1"}))
	f.Add(encode(&pgproto3.PasswordMessage{Password: "again"}))
	f.Add(encode(execute(""), execute(""), &pgproto3.Query{String: "select 1"})[:20])
	f.Add([]byte{'Q', 0, 0, 0, 4})
	f.Add([]byte{'P', 0x7f, 0xff, 0xff, 0xff, 'x'})
	f.Add([]byte{'B', 0, 0, 0, 12, 0, 0, 0, 1, 0, 9, 0xff, 0xff, 'S', 0, 0, 0, 4})
	f.Add([]byte{'E', 0, 0, 0, 9, 0, 0xff, 0xff, 0xff, 0xff, 'S', 0, 0, 0, 5, 0})
	g := start(f, "18")
	bystander := g.wire(f)
	f.Fuzz(func(t *testing.T, sent []byte) {
		w := g.wire(t)
		w.conn.Write(sent) // the session may be over before it is all sent
		w.conn.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, w.conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the session hangs")
		}
		bystander.t = t
		bystander.conn.SetDeadline(time.Now().Add(20 * time.Second))
		same(t, bystander.ask("select 1 as one"), []string{"columns one", "row 1", "SELECT 1", "ready I"})
	})
}

// FuzzStartup does the same with startup parameters.
func FuzzStartup(f *testing.F) {
	f.Add([]byte("user\x00a\x00database\x00b\x00\x00"))
	f.Add([]byte("user\x00a\x00user\x00b\x00\x00"))
	f.Add([]byte("\x00"))
	f.Add([]byte("user\x00a\x00options\x00-c statement_timeout=5 --TimeZone=UTC -c\\ role=x\x00\x00"))
	f.Fuzz(func(t *testing.T, body []byte) {
		params, err := startupParameters(body)
		if err != nil {
			return
		}
		settings, err := clientSettings(params)
		if err != nil {
			return
		}
		for name, value := range settings {
			if err := sql.CheckSetting(name, value); err != nil {
				t.Errorf("%s = %q: %v", name, value, err)
			}
			if name == "search_path" || name == "client_encoding" || name == "standard_conforming_strings" || name == "row_security" || name == "role" {
				t.Errorf("%s can be set", name)
			}
		}
	})
}

// FuzzRow takes a DataRow apart and puts it together again.
func FuzzRow(f *testing.F) {
	f.Add([]byte{0, 2, 0, 0, 0, 1, 'x', 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, body []byte) {
		cells, err := splitRow(nil, body)
		if err != nil {
			return
		}
		if again := joinRow(cells); !bytes.Equal(again, body) {
			t.Errorf("%x became %x", body, again)
		}
	})
}
