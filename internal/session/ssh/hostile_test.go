package ssh

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	sessions "chaperone.dev/chaperone/internal/session"
)

// hostile makes the host one that behaves as serve says, on a connection that
// proved itself to be the pinned host.
func (g *gateway) hostile(t *testing.T, serve func(*gossh.ServerConn, <-chan gossh.NewChannel)) {
	t.Helper()
	key := newSigner(t)
	config := &gossh.ServerConfig{NoClientAuth: true, PublicKeyCallback: func(gossh.ConnMetadata, gossh.PublicKey) (*gossh.Permissions, error) { return nil, nil }}
	config.AddHostKey(key)
	g.target(t, func(conn net.Conn) {
		server, channels, requests, err := gossh.NewServerConn(conn, config)
		if err != nil {
			return
		}
		go gossh.DiscardRequests(requests)
		serve(server, channels)
	})
	g.change(func(r *Resource) { r.HostKeys = []gossh.PublicKey{key.PublicKey()} })
}

// target makes the host whatever serve does with a connection.
func (g *gateway) target(t *testing.T, serve func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go serve(conn)
		}
	}()
	g.change(func(r *Resource) { r.Address = l.Addr().String() })
}

// each takes session channels, and hands over each that wants to run something.
func each(channels <-chan gossh.NewChannel, run func(gossh.Channel)) {
	for incoming := range channels {
		ch, requests, err := incoming.Accept()
		if err != nil {
			return
		}
		for r := range requests {
			_ = r.Reply(true, nil)
			if r.Type == "exec" {
				go gossh.DiscardRequests(requests)
				run(ch)
				break
			}
		}
	}
}

func exitStatus(status uint32) []byte { return gossh.Marshal(struct{ Status uint32 }{status}) }

// A host that breaks the protocol harms nobody but who asked it.
func TestHostileHosts(t *testing.T) {
	t.Parallel()
	good := func(ch gossh.Channel) {
		_, _ = io.WriteString(ch, "done\n")
		_, _ = ch.SendRequest("exit-status", false, exitStatus(3))
		_ = ch.Close()
	}
	for name, c := range map[string]struct {
		serve  func(*gossh.ServerConn, <-chan gossh.NewChannel)
		out    string
		status int
	}{
		"well-behaved": {func(_ *gossh.ServerConn, channels <-chan gossh.NewChannel) { each(channels, good) }, "done\n", 3},
		"opens no channel": {func(_ *gossh.ServerConn, channels <-chan gossh.NewChannel) {
			for range channels { // and answers none
			}
		}, "", 75},
		"never answers": {func(_ *gossh.ServerConn, channels <-chan gossh.NewChannel) {
			for incoming := range channels {
				_, requests, _ := incoming.Accept()
				go func() {
					for range requests {
					}
				}()
			}
		}, "", 75},
		"leaves in between": {func(conn *gossh.ServerConn, channels <-chan gossh.NewChannel) {
			each(channels, func(gossh.Channel) { conn.Close() })
		}, "", 75},
		"tells its status twice, and goes on": {func(_ *gossh.ServerConn, channels <-chan gossh.NewChannel) {
			each(channels, func(ch gossh.Channel) {
				_, _ = ch.SendRequest("exit-status", false, exitStatus(3))
				_, _ = ch.SendRequest("exit-status", false, exitStatus(0))
				good(ch)
			})
		}, "done\n", 3},
		"tells a status that is too long": {func(_ *gossh.ServerConn, channels <-chan gossh.NewChannel) {
			each(channels, func(ch gossh.Channel) {
				_, _ = ch.SendRequest("exit-signal", false, bytes.Repeat([]byte{1}, 100_000))
				_ = ch.Close()
			})
		}, "", 75},
		"floods the connection with requests": {func(conn *gossh.ServerConn, channels <-chan gossh.NewChannel) {
			go func() {
				for range 20_000 {
					if _, _, err := conn.SendRequest("hostkeys-00@openssh.com", false, bytes.Repeat([]byte{1}, 100)); err != nil {
						return
					}
				}
			}()
			each(channels, good)
		}, "done\n", 3},
		"floods the channel with requests": {func(_ *gossh.ServerConn, channels <-chan gossh.NewChannel) {
			each(channels, func(ch gossh.Channel) {
				for range 20_000 {
					_, _ = ch.SendRequest("xon-xoff", false, []byte{1})
				}
				good(ch)
			})
		}, "done\n", 3},
		"opens channels itself": {func(conn *gossh.ServerConn, channels <-chan gossh.NewChannel) {
			each(channels, func(ch gossh.Channel) {
				for _, kind := range []string{"session", "auth-agent@openssh.com", "x11", "forwarded-tcpip", "direct-tcpip"} {
					if _, _, err := conn.OpenChannel(kind, nil); err == nil {
						_, _ = io.WriteString(ch, kind+" opens\n")
					}
				}
				good(ch)
			})
		}, "done\n", 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := start(t, func(_ *gateway, c *Config) { c.DialTimeout = 2 * time.Second })
			g.hostile(t, c.serve)
			if r := exec(t, g.connect(t), ": free; true", ""); r.out != c.out || r.status != c.status {
				t.Errorf("%+v", r)
			}
			eventually(t, "it is over", func() bool {
				return len(g.recorder.find(func(e access.Event) bool { return e.Ended != nil })) == 1
			})
		})
	}
}

// A host that never comes to its greeting, or to the end of its key exchange, is
// given up.
func TestHostsThatDoNotGreet(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(net.Conn){
		"silence":         func(net.Conn) {},
		"endless lines":   func(c net.Conn) { forever(c, "not yet\r\n") },
		"one endless one": func(c net.Conn) { forever(c, strings.Repeat("x", 1000)) },
		"half a key exchange": func(c net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, c) }()
			_, _ = io.WriteString(c, "SSH-2.0-x\r\n\x00\x00\x04\x00")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := start(t, func(_ *gateway, c *Config) { c.DialTimeout = 300 * time.Millisecond })
			g.target(t, serve)
			if r := exec(t, g.connect(t), "echo in", ""); r.status != 75 || !strings.Contains(r.errs, "cannot reach web") {
				t.Errorf("%+v", r)
			}
		})
	}
}

func forever(c net.Conn, text string) {
	for {
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
	}
}

// What a host does not read waits at the client, not here.
func TestHostThatDoesNotRead(t *testing.T) {
	t.Parallel()
	g := start(t)
	g.hostile(t, func(_ *gossh.ServerConn, channels <-chan gossh.NewChannel) { each(channels, func(gossh.Channel) {}) })
	session, err := g.connect(t).NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, err := session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start(": free; cat"); err != nil {
		t.Fatal(err)
	}
	sent := make(chan int)
	go func() {
		n, piece := 0, bytes.Repeat([]byte("text\n"), 10_000)
		for n < 64<<20 {
			if _, err := in.Write(piece); err != nil {
				break
			}
			n += len(piece)
		}
		sent <- n
	}()
	eventually(t, "the windows are full", func() bool { return len(g.recorder.text(access.Stdin)) > 0 })
	if _, err := g.registry.Kill(t.Context(), sessions.Selector{All: true}, "", access.Principal{}); err != nil {
		t.Fatal(err)
	}
	if n := <-sent; n > 8<<20 {
		t.Errorf("%d bytes were taken", n)
	}
}

// One principal cannot take all sessions, nor fill the recording with wishes.
func TestFloods(t *testing.T) {
	t.Parallel()
	g := start(t, func(_ *gateway, c *Config) { c.MaxSessionsPerPrincipal = 2 })
	first, second := g.connect(t), g.connect(t)
	for _, c := range []*gossh.Client{first, second} {
		if r := exec(t, c, "echo in", ""); r.out != "in\n" {
			t.Fatalf("%+v", r)
		}
	}
	if r := exec(t, g.connect(t), "echo in", ""); !r.refused("you have 2 sessions") {
		t.Errorf("a third: %+v", r)
	}
	other := agent()
	other.Subject = "another"
	client, err := g.login(t, host.Account+"@web", gossh.PublicKeys(certified(t, other, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if r := exec(t, client, "echo in", ""); r.out != "in\n" {
		t.Errorf("somebody else: %+v", r)
	}
	for i := range 10_000 {
		_, _, err := second.SendRequest("tcpip-forward", false, gossh.Marshal(struct {
			Host string
			Port uint32
		}{fmt.Sprint("host-", i), 1}))
		if err != nil {
			break
		}
	}
	if err := second.Wait(); err == nil {
		t.Error("the flood goes on")
	}
	if n := len(g.recorder.find(func(e access.Event) bool {
		return e.Decided != nil && e.Decided.Request.Action.SSH.Act == access.ActForward
	})); n != maxWishes {
		t.Errorf("%d wishes are recorded", n)
	}
	if !strings.Contains(g.log.String(), "asks again and again") {
		t.Error("nobody says why it ended")
	}
	eventually(t, "there is room again", func() bool { return exec(t, g.connect(t), "echo in", "").out == "in\n" })
}

// FuzzPayloads: whatever a client writes into a request, it is taken or refused,
// and what is taken is within the bounds.
func FuzzPayloads(f *testing.F) {
	f.Add("env", gossh.Marshal(struct{ Name, Value string }{"LC_ALL", "C"}))
	f.Add("pty-req", gossh.Marshal(terminal{Term: "xterm", Columns: 80, Rows: 24}))
	f.Add("window-change", gossh.Marshal(struct{ Columns, Rows, Width, Height uint32 }{80, 24, 0, 0}))
	f.Add("signal", gossh.Marshal(struct{ Name string }{"INT"}))
	f.Add("exec", gossh.Marshal(struct{ Text string }{"ls"}))
	f.Fuzz(func(t *testing.T, kind string, payload []byte) {
		c := &channel{session: &session{}, environment: map[string]string{}}
		for range 2 {
			switch request := (&gossh.Request{Type: kind, Payload: payload}); kind {
			case "exec", "subsystem", "shell":
				started := c.started
				if then := c.begin(t.Context(), request); started && then != nil {
					t.Error("a second act on the channel")
				}
			case "env", "pty-req", "window-change", "signal":
				if ok, then := c.take(t.Context(), request); then != nil || ok && kind == "signal" {
					t.Errorf("%s does something", kind)
				}
			}
		}
		if len(c.environment) > 1 {
			t.Errorf("%v", c.environment)
		}
		for name, value := range c.environment {
			if len(value) > maxVariable || !harmlessValue.MatchString(value) || !usualVariables.MatchString(name) && name != "GIT_PROTOCOL" {
				t.Errorf("%q=%q is taken", name, value)
			}
		}
		if p := c.terminal; p != nil && (max(p.Columns, p.Rows) > maxSide || len(p.Term) > maxTerm || len(p.Modes) > maxModes) {
			t.Errorf("%+v is taken", p)
		}
		if kind == "exit-status" || kind == "exit-signal" {
			if tag := tagOf(&gossh.Request{Type: kind, Payload: payload}); len(tag) > 100 || strings.ContainsAny(tag, "\x1b\n") {
				t.Errorf("%q", tag)
			}
		}
	})
}
