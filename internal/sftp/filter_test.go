package sftp

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestOperations(t *testing.T) {
	t.Parallel()
	mode := func(p packet) packet { return p.uint32(attrPermissions).uint32(0o600) }
	name := func(id uint32) packet { return noAttrs(ask(typeName, id).uint32(1).string("x").string("x")) }
	attrs := func(id uint32) packet { return noAttrs(ask(typeAttrs, id)) }
	handle := func(id uint32) packet { return ask(typeHandle, id).string("h") }
	extended := func(id uint32) packet { return ask(typeExtendedReply, id).uint64(1) }
	for _, tc := range []struct {
		name    string
		request func(packet) packet
		kind    byte
		answer  func(uint32) packet
		want    string
	}{
		{"read", func(p packet) packet { return noAttrs(p.string("/a").uint32(1)) }, typeOpen, handle, `read "/a"|/a|||true`},
		{"open for nothing is for reading", func(p packet) packet { return noAttrs(p.string("/a").uint32(0)) }, typeOpen, handle, `read "/a"|/a|||true`},
		{"create", func(p packet) packet { return mode(p.string("/a").uint32(2 | 8 | 16)) }, typeOpen, handle, `write "/a" flags=0x1a mode=0600||/a||false`},
		{"truncate without writing", func(p packet) packet { return noAttrs(p.string("/a").uint32(16)) }, typeOpen, handle, `write "/a" flags=0x10|/a|/a||false`},
		{"read and write", func(p packet) packet { return noAttrs(p.string("/a").uint32(3)) }, typeOpen, handle, `write "/a" flags=0x3|/a|/a||false`},
		{"list", func(p packet) packet { return p.string("/a//b/") }, typeOpendir, handle, `list "/a//b/"|/a/b|||true`},
		{"stat", func(p packet) packet { return p.string("b") }, typeStat, attrs, `stat "b"|~/b|||true`},
		{"lstat", func(p packet) packet { return p.string("~/b") }, typeLstat, attrs, `stat "~/b"|~/~/b|||true`},
		{"setstat", func(p packet) packet { return mode(p.string("/a")) }, typeSetstat, okStatus, `setstat "/a" mode=0600||/a||false`},
		{"mkdir", func(p packet) packet { return noAttrs(p.string("/a")) }, typeMkdir, okStatus, `mkdir "/a"||/a||false`},
		{"remove", func(p packet) packet { return p.string("/a") }, typeRemove, okStatus, `remove "/a"|||/a|false`},
		{"rmdir", func(p packet) packet { return p.string("/a") }, typeRmdir, okStatus, `rmdir "/a"|||/a|false`},
		{"rename", func(p packet) packet { return p.string("/a").string("/b") }, typeRename, okStatus, `rename "/a" "/b"||/b|/a|false`},
		{"readlink", func(p packet) packet { return p.string("/a") }, typeReadlink, name, `readlink "/a"|/a|||true`},
		{"realpath", func(p packet) packet { return p.string("/a") }, typeRealpath, name, `realpath "/a"|/a|||true`},
		{"symlink", func(p packet) packet { return p.string("/a").string("/b") }, typeSymlink, okStatus, `symlink "/a" "/b"|/a,/b|/a,/b||false`},
		{"relative symlink", func(p packet) packet { return p.string("a").string("/b") }, typeSymlink, okStatus, `symlink "a" "/b"||||false a link to a relative path`},
		{"posix-rename", func(p packet) packet { return p.string(extPosixRename).string("/a").string("/b") }, typeExtended, okStatus, `rename "/a" "/b"||/b|/a|false`},
		{"hardlink", func(p packet) packet { return p.string(extHardlink).string("/a").string("/b") }, typeExtended, okStatus, `hardlink@openssh.com "/a" "/b"|/a,/b|/a,/b||false`},
		{"statvfs", func(p packet) packet { return p.string(extStatvfs).string("/a") }, typeExtended, extended, `stat "/a"|/a|||true`},
		{"lsetstat", func(p packet) packet { return mode(p.string(extLsetstat).string("/a")) }, typeExtended, okStatus, `setstat "/a" mode=0600||/a||false`},
		{"expand-path", func(p packet) packet { return p.string(extExpandPath).string("~/a") }, typeExtended, name, `realpath "~/a"|~/a|||true`},
		{"another's home", func(p packet) packet { return p.string(extExpandPath).string("~bob") }, typeExtended, name, `realpath "~bob"||||false ~bob may be below another account's home`},
		{"dots", func(p packet) packet { return p.string("/a/../b") }, typeRemove, okStatus, `remove "/a/../b"||||false /a/../b has .. in it`},
		{"not UTF-8", func(p packet) packet { return p.string("/\xff") }, typeRemove, okStatus, `remove "/\xff"||||false "/\xff" is not UTF-8`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := &clerk{}
			s := newSession(t, c)
			s.greet()
			s.exchange(tc.request(ask(tc.kind, 7)).done(), tc.answer(7))
			call := c.asked[0]
			got := fmt.Sprintf("%s|%s|%s|%s|%v %s", call.Command, strings.Join(call.Reads, ","), strings.Join(call.Writes, ","), strings.Join(call.Removes, ","), call.ReadOnly, strings.Join(call.UnknownPaths, ";"))
			if got = strings.TrimSpace(got); got != tc.want || call.Act != "sftp" || len(c.asked) != 1 {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			s.end()
			if r, told := c.results[call.Command]; !told || r.Status != 0 || r.Text != "" {
				t.Errorf("it ended as %+v (%v)", r, told)
			}
			// Its near twin is refused, and the server never sees it.
			c = &clerk{refuse: []string{call.Operation}}
			s = newSession(t, c)
			s.greet()
			if code, text := s.refused(tc.request(ask(tc.kind, 7)).done()); code != statusPermissionDenied || text != "not "+call.Operation {
				t.Errorf("refused with %d %q", code, text)
			}
			if s.end(); len(c.results) > 0 {
				t.Errorf("what never was ended: %v", c.results)
			}
		})
	}
}

// end ends the session in order.
func (s *session) end() {
	s.t.Helper()
	s.hangUp()
	s.hangSrv()
	for _, side := range []chan error{s.client, s.server} {
		if err := <-side; err != nil {
			s.t.Errorf("the session ends with %v", err)
		}
	}
	s.filter.Close()
}

// Refusals keep their place among the answers to what was asked before.
func TestRefusalsInOrder(t *testing.T) {
	t.Parallel()
	s := newSession(t, &clerk{refuse: []string{"secret"}})
	s.greet()
	s.send(ask(typeStat, 1).string("/a").done())
	s.send(ask(typeStat, 2).string("/secret").done())
	s.send(ask(typeStat, 3).string("/b").done())
	<-s.serverSees
	<-s.serverSees
	s.say(append(noAttrs(ask(typeAttrs, 3)).done(), noAttrs(ask(typeAttrs, 1)).done()...))
	var order []string
	for range 3 {
		f := s.receive()
		order = append(order, fmt.Sprint(f.kind(), f.body()[3]))
	}
	if got := strings.Join(order, " "); got != "105 3 105 1 101 2" {
		t.Errorf("the client gets %s", got)
	}
	s.end()
}

// A handle serves what it was opened for, until it is closed.
func TestHandles(t *testing.T) {
	t.Parallel()
	s := newSession(t, &clerk{refuse: []string{"setstat mode=0777"}})
	s.greet()
	r := s.opened(1, "/r", openRead)
	w := s.opened(2, "/w", openWrite)
	s.exchange(ask(typeOpendir, 3).string("/d").done(), ask(typeHandle, 3).string("d"))
	read := func(id uint32, h string) packet { return ask(typeRead, id).string(h).uint64(0).uint32(10) }
	write := func(id uint32, h string) packet { return ask(typeWrite, id).string(h).uint64(0).string("x") }
	for name, p := range map[string]packet{
		"writing what is open to read": write(9, r), "reading what is open to write": read(9, w), "reading a directory as a file": read(9, "d"),
		"writing a directory": write(9, "d"), "listing a file": ask(typeReaddir, 9).string(r), "syncing a directory": ask(typeExtended, 9).string(extFsync).string("d"),
		"copying from what is open to write": ask(typeExtended, 9).string(extCopyData).string(w).uint64(0).uint64(1).string(w).uint64(0),
		"copying to what is open to read":    ask(typeExtended, 9).string(extCopyData).string(r).uint64(0).uint64(1).string(r).uint64(0),
		"setting by handle what is refused":  ask(typeFsetstat, 9).string(r).uint32(attrPermissions).uint32(0o777),
	} {
		if code, _ := s.refused(p.done()); code != statusPermissionDenied {
			t.Errorf("%s: status %d", name, code)
		}
	}
	if code, _ := s.refused(read(9, "guessed").done()); code != statusFailure {
		t.Errorf("a handle that was never given: status %d", code)
	}
	if code, _ := s.refused(ask(typeExtended, 9).string("evil@example.com").string("x").done()); code != statusUnsupported {
		t.Errorf("an extension that is not served: status %d", code)
	}
	s.exchange(read(10, r).done(), ask(typeData, 10).string("0123456789"))
	s.exchange(write(11, w).done(), okStatus(11))
	s.exchange(ask(typeFsetstat, 12).string(w).uint32(attrPermissions).uint32(0o600).done(), okStatus(12))
	s.exchange(ask(typeReaddir, 13).string("d").done(), ask(typeName, 13).uint32(0))
	s.exchange(ask(typeExtended, 14).string(extCopyData).string(r).uint64(0).uint64(1).string(w).uint64(0).done(), okStatus(14))
	s.exchange(ask(typeClose, 15).string(r).done(), okStatus(15))
	if code, _ := s.refused(read(16, r).done()); code != statusFailure {
		t.Errorf("a handle that is closed: status %d", code)
	}
	s.end()
	sum := func(text string) string { h := sha256.Sum256([]byte(text)); return hex.EncodeToString(h[:]) }
	if got := s.clerk.results[`read "/r"`]; got.Read != (Content{Bytes: 10, SHA256: sum("0123456789")}) || got.Cut || got.Written != (Content{}) {
		t.Errorf("reading ended with %+v", got)
	}
	if got := s.clerk.results[`write "/w" flags=0x2`]; got.Written != (Content{Bytes: 1, SHA256: sum("x")}) || !got.Cut || !got.Copied {
		t.Errorf("writing ended with %+v", got)
	}
	last := s.clerk.asked[len(s.clerk.asked)-1]
	if last.Operation != opSetstat || len(last.Writes) != 1 || last.Writes[0] != "/w" {
		t.Errorf("setting by handle was judged as %+v", last)
	}
}

func TestScatteredContent(t *testing.T) {
	t.Parallel()
	pieces := map[string][]int{"in order": {0, 4, 8}, "from the end": {8, 4, 0}, "with a gap": {0, 8}, "twice": {0, 0}}
	seen := map[string]string{}
	for name, offsets := range pieces {
		var d digest
		for _, at := range offsets {
			d.add(uint64(at), []byte("abcd"))
		}
		c := d.content()
		if c.Scattered == (name == "in order") || c.Bytes != int64(4*len(offsets)) || seen[c.SHA256] != "" {
			t.Errorf("%s: %+v (as %s)", name, c, seen[c.SHA256])
		}
		seen[c.SHA256] = name
	}
}

// After the server has said where the home directory is, relative paths are
// known whole.
func TestHome(t *testing.T) {
	t.Parallel()
	s := newSession(t, &clerk{})
	s.greet()
	home := func(id uint32, at string) packet { return noAttrs(ask(typeName, id).uint32(1).string(at).string(at)) }
	s.exchange(ask(typeRealpath, 1).string("/elsewhere").done(), home(1, "/elsewhere"))
	s.exchange(ask(typeStat, 2).string("a").done(), noAttrs(ask(typeAttrs, 2)))
	s.exchange(ask(typeRealpath, 3).string(".").done(), home(3, "/home/u"))
	s.exchange(ask(typeRealpath, 4).string(".").done(), home(4, "/etc"))
	s.exchange(ask(typeStat, 5).string("a").done(), noAttrs(ask(typeAttrs, 5)))
	s.exchange(ask(typeStat, 6).string("").done(), noAttrs(ask(typeAttrs, 6)))
	s.end()
	for i, want := range map[int]string{1: "~/a", 4: "/home/u/a", 5: "/home/u"} {
		if got := s.clerk.asked[i].Reads[0]; got != want {
			t.Errorf("request %d reads %s, want %s", i, got, want)
		}
	}
}

// Content passes only as far as the judge says.
func TestReadLimit(t *testing.T) {
	t.Parallel()
	left := 10
	s := newSession(t, &clerk{read: func(n int) error {
		if left -= n; left < 0 {
			return errors.New("ten bytes are all")
		}
		return nil
	}})
	s.greet()
	h := s.opened(1, "/a", openRead)
	read := func(id uint32) []byte { return ask(typeRead, id).string(h).uint64(0).uint32(10).done() }
	if f := s.exchange(read(2), ask(typeData, 2).string("0123456789")); f.kind() != typeData {
		t.Errorf("got %q", f)
	}
	if f := s.exchange(read(3), ask(typeData, 3).string("secret")); f.kind() != typeStatus || !bytes.Contains(f, []byte("ten bytes")) || bytes.Contains(f, []byte("secret")) {
		t.Errorf("got %q", f)
	}
	s.end()
}

// What is malformed or out of order ends the session.
func TestClientLies(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("a", maxPath+1)
	for name, p := range map[string][]byte{
		"no length": {0, 0, 0, 0}, "a huge length": {0xff, 0xff, 0xff, 0xff}, "INIT again": newPacket(typeInit).uint32(3).done(),
		"an answer": okStatus(9).done(), "an unknown type": ask(77, 9).done(), "no id": newPacket(typeStat).done(), "a string beyond the end": append(ask(typeStat, 9).uint32(100).done(), 'x')[:13],
		"more after the end": append(ask(typeStat, 9).string("/a"), 'x').done(), "a long path": ask(typeStat, 9).string(huge).done(), "a long handle": ask(typeClose, 9).string(huge).done(),
		"unknown flags": noAttrs(ask(typeOpen, 9).string("/a").uint32(64)).done(), "unknown attributes": ask(typeMkdir, 9).string("/a").uint32(64).done(),
		"extended attributes without end": ask(typeMkdir, 9).string("/a").uint32(attrExtended).uint32(1 << 30).done(), "an id that is pending": ask(typeStat, 5).string("/b").done(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSession(t, &clerk{})
			s.greet()
			s.send(ask(typeStat, 5).string("/a").done())
			<-s.serverSees
			go func() { _, _ = s.toFilter.Write(p); s.hangUp() }()
			if err := <-s.client; !errors.Is(err, errMalformed) {
				t.Errorf("it ends with %v", err)
			}
			if len(s.serverSees) > 0 {
				t.Errorf("the server gets %q", <-s.serverSees)
			}
		})
	}
}

func TestBeforeVersion(t *testing.T) {
	t.Parallel()
	s := newSession(t, &clerk{})
	s.send(newPacket(typeInit).uint32(3).done())
	<-s.serverSees
	s.send(ask(typeRemove, 1).string("/a").done())
	if err := <-s.client; !errors.Is(err, errMalformed) || len(s.serverSees) > 0 {
		t.Errorf("it ends with %v", err)
	}
	old := newSession(t, &clerk{})
	old.send(newPacket(typeInit).uint32(2).done())
	if err := <-old.client; err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("it ends with %v", err)
	}
}

func TestServerLies(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]packet{
		"an answer to nothing": okStatus(9), "an answer to what was refused": okStatus(6), "a request": ask(typeStat, 5).string("/a"), "another kind": noAttrs(ask(typeAttrs, 5)),
		"success without a handle": okStatus(5), "a long handle": ask(typeHandle, 5).string(strings.Repeat("h", 300)), "a handle twice": ask(typeHandle, 5).string("h1"),
		"a cut status": ask(typeStatus, 5), "more than was asked for": ask(typeData, 4).string("01234567890"), "VERSION again": newPacket(typeVersion).uint32(3),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSession(t, &clerk{refuse: []string{"secret"}})
			s.greet()
			h := s.opened(1, "/a", openRead)
			s.send(ask(typeRead, 4).string(h).uint64(0).uint32(10).done())
			s.send(noAttrs(ask(typeOpen, 5).string("/b").uint32(openRead)).done())
			s.send(ask(typeStat, 6).string("/secret").done())
			<-s.serverSees
			<-s.serverSees
			s.say(p.done())
			if err := <-s.server; !errors.Is(err, errMalformed) {
				t.Errorf("it ends with %v", err)
			}
		})
	}
	for name, p := range map[string]packet{"version 6": newPacket(typeVersion).uint32(6), "version 2": newPacket(typeVersion).uint32(2), "half an extension": newPacket(typeVersion).uint32(3).string("x")} {
		s := newSession(t, &clerk{})
		s.send(newPacket(typeInit).uint32(3).done())
		<-s.serverSees
		s.say(p.done())
		if err := <-s.server; !errors.Is(err, errMalformed) {
			t.Errorf("%s: it ends with %v", name, err)
		}
	}
}

// A transcript comes out the same wherever it is split.
func TestSplitAnywhere(t *testing.T) {
	t.Parallel()
	client := bytes.Join([][]byte{
		noAttrs(ask(typeOpen, 1).string("/a").uint32(openRead)).done(), ask(typeStat, 2).string("/secret").done(),
		ask(typeRename, 3).string("/a").string("b").done(), ask(typeExtended, 4).string(extHardlink).string("/a").string("/b").done(),
	}, nil)
	server := bytes.Join([][]byte{ask(typeHandle, 1).string("h").done(), okStatus(3).done(), okStatus(4).done()}, nil)
	run := func(from func([]byte) io.Reader) (sees, gets string) {
		var toServer, toClient bytes.Buffer
		f := New(&clerk{refuse: []string{"secret"}}, &toClient, &toServer)
		f.greeted, f.versioned, f.extensions = true, true, map[string]bool{extHardlink: true}
		if err := f.FromClient(t.Context(), from(client)); err != nil {
			t.Fatal(err)
		}
		if err := f.FromServer(from(server)); err != nil {
			t.Fatal(err)
		}
		return toServer.String(), toClient.String()
	}
	whole := func(b []byte) io.Reader { return bytes.NewReader(b) }
	wantSees, wantGets := run(whole)
	if strings.Contains(wantSees, "secret") || !strings.Contains(wantGets, "not secret") {
		t.Fatalf("the server gets %q, the client %q", wantSees, wantGets)
	}
	for at := range max(len(client), len(server)) {
		sees, gets := run(func(b []byte) io.Reader {
			at := min(at, len(b))
			return io.MultiReader(bytes.NewReader(b[:at]), bytes.NewReader(b[at:]))
		})
		if sees != wantSees || gets != wantGets {
			t.Fatalf("split at %d the server gets %q, the client %q", at, sees, gets)
		}
	}
}

// A client that asks without reading the answers is held up, not the gateway.
func TestPendingIsBounded(t *testing.T) {
	t.Parallel()
	s := newSession(t, &clerk{})
	s.greet()
	sent := make(chan int, 1)
	go func() {
		n := 0
		for ; n < 2*maxPending; n++ {
			if _, err := s.toFilter.Write(ask(typeStat, uint32(n)).string("/a").done()); err != nil {
				break
			}
		}
		sent <- n
	}()
	for range maxPending {
		<-s.serverSees
	}
	s.hangSrv()
	if err := <-s.client; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("it ends with %v", err)
	}
	s.hangUp()
	if n := <-sent; n > maxPending+1 || len(s.serverSees) > 0 {
		t.Errorf("%d requests were taken, and %d more forwarded", n, len(s.serverSees))
	}
}

func FuzzFilter(f *testing.F) {
	join := func(packets ...packet) []byte {
		var b []byte
		for _, p := range packets {
			b = append(b, p.done()...)
		}
		return b
	}
	f.Add(join(noAttrs(ask(typeOpen, 1).string("/a").uint32(1)), ask(typeStat, 2).string("/secret")), join(ask(typeHandle, 1).string("h")))
	f.Add(join(ask(typeExtended, 1).string(extPosixRename).string("/a").string("/b"), ask(typeReaddir, 2).string("h")), join(okStatus(1), noAttrs(ask(typeName, 2).uint32(1).string("x").string("x"))))
	f.Fuzz(func(t *testing.T, client, server []byte) {
		var toServer, toClient bytes.Buffer
		c := &clerk{refuse: []string{"secret"}}
		filter := New(c, &toClient, &toServer)
		filter.greeted, filter.versioned, filter.extensions = true, true, map[string]bool{extPosixRename: true, extHardlink: true, extCopyData: true}
		_ = filter.FromClient(t.Context(), bytes.NewReader(client))
		_ = filter.FromServer(bytes.NewReader(server))
		filter.Close()
		// Whatever reaches the server is a request that was judged, or that needs
		// an open handle, of which there were none.
		judged := map[string]int{}
		for _, call := range c.asked {
			judged[call.Command]++
		}
		in := reader{from: &toServer}
		for {
			p, err := in.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			r, err := decode(p.kind(), p.body())
			if err != nil || len(r.handles) > 0 || r.call == nil && r.extension != extLimits || r.call != nil && judged[r.call.Command] == 0 {
				t.Fatalf("the server gets %q (%v)", p, err)
			}
			if r.call != nil && strings.Contains(r.call.Command, "secret") {
				t.Fatalf("the server gets what was refused: %q", p)
			}
		}
		out := reader{from: &toClient}
		for {
			if _, err := out.next(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	})
}
