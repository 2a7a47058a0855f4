package ssh

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/session/ingress"
)

// admitted connects as Envoy does for a CONNECT, with the tickets in its header.
func (g *gateway) admitted(t testing.TB, tickets ...string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	header := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 4321}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 8443})
	var tlvs []proxyproto.TLV
	for _, id := range tickets {
		tlvs = append(tlvs, proxyproto.TLV{Type: ingress.TicketTLV, Value: []byte(id)})
	}
	if err := header.SetTLVs(tlvs); err != nil {
		t.Fatal(err)
	}
	if _, err := header.WriteTo(conn); err != nil {
		t.Fatal(err)
	}
	return conn
}

func (g *gateway) ticket(t testing.TB, p access.Principal) string {
	t.Helper()
	id, err := g.Admit(Permit{Principal: p, Resource: "web"})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// over logs in over a connection.
func over(t testing.TB, conn net.Conn, login string, auth ...gossh.AuthMethod) (*gossh.Client, error) {
	t.Helper()
	var banner strings.Builder
	c, channels, requests, err := gossh.NewClientConn(conn, "gateway:22", &gossh.ClientConfig{User: login, Auth: auth, HostKeyCallback: gossh.InsecureIgnoreHostKey(),
		Timeout: 10 * time.Second, BannerCallback: func(message string) error { banner.WriteString(message); return nil }})
	if err != nil {
		return nil, &net.OpError{Op: banner.String(), Err: err}
	}
	client := gossh.NewClient(c, channels, requests)
	t.Cleanup(func() { client.Close() })
	return client, nil
}

// Who the authorizer let through is who it says, without a word of the client's
// and whatever the client shows; it is judged as everybody is.
func TestConnected(t *testing.T) {
	t.Parallel()
	g := start(t)
	one := agent()
	one.Subject = "agent-by-connect"
	for name, auth := range map[string][]gossh.AuthMethod{"nothing shown": nil, "another's certificate shown": {gossh.PublicKeys(certified(t, agent(), nil))}, "a token shown": {gossh.Password("good")}} {
		client, err := over(t, g.admitted(t, g.ticket(t, one)), "anything", auth...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if r := exec(t, client, "echo in", ""); r.out != "in\n" {
			t.Errorf("%s: %+v", name, r)
		}
		file := evil(t)
		if r := exec(t, client, "dd of="+file, ""); !r.refused("no-rule") || exists(file) {
			t.Errorf("%s: what no rule allows: %+v", name, r)
		}
	}
	for _, e := range g.recorder.find(func(e access.Event) bool { return e.Opened != nil }) {
		if p := e.Opened.Session.Principal; p.Subject != one.Subject {
			t.Errorf("a session of %s", p.Subject)
		}
	}
}

// Without a ticket of the authorizer's there is no such connection, and "none"
// is no credential on any other.
func TestTicketsAreNotForged(t *testing.T) {
	t.Parallel()
	g := start(t)
	used := g.ticket(t, agent())
	if _, err := over(t, g.admitted(t, used), "x"); err != nil {
		t.Fatalf("control: %v", err)
	}
	certificate := gossh.PublicKeys(certified(t, agent(), nil))
	for name, tickets := range map[string][]string{"used": {used}, "made up": {"AAAAAAAAAAAAAAAAAAAAAAAAAA"}, "nothing, as Envoy writes it": {"-"}, "empty": {""}, "two": {g.ticket(t, agent()), g.ticket(t, agent())}} {
		if _, err := over(t, g.admitted(t, tickets...), host.Account+"@web", certificate); err == nil {
			t.Errorf("a connection with a ticket that is %s, or is %s", name, tickets)
		}
	}
	if _, err := over(t, g.dial(t), host.Account+"@web"); err == nil {
		t.Error("a connection without a ticket needs no credential")
	}
	// What a client itself sends before its first word is no header: Envoy's stands before it.
	conn := g.dial(t)
	header := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 4321}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 2222})
	if err := header.SetTLVs([]proxyproto.TLV{{Type: ingress.TicketTLV, Value: []byte(g.ticket(t, agent()))}}); err != nil {
		t.Fatal(err)
	}
	if _, err := header.WriteTo(conn); err != nil {
		t.Fatal(err)
	}
	if _, err := over(t, conn, host.Account+"@web"); err == nil {
		t.Error("a client writes the header itself")
	}
	if opened := g.recorder.find(func(e access.Event) bool { return e.Opened != nil }); len(opened) != 1 {
		t.Errorf("%d sessions", len(opened))
	}
}

// A permit is for one host, and no longer good once its token was taken back or
// its issuer is gone.
func TestPermitsAreCurrent(t *testing.T) {
	t.Parallel()
	g := start(t)
	revoked, stranger := agent(), agent()
	revoked.Token.ID, stranger.Issuer = "tok_gone", "gone"
	if err := g.registry.RevokeToken(t.Context(), revoked, "stolen"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		who         access.Principal
		login, want string
	}{
		"revoked":       {revoked, host.Account, "denied: the token of this connection is not valid"},
		"of no issuer":  {stranger, host.Account, "denied: the token of this connection is not valid"},
		"another host":  {agent(), host.Account + "@db", "denied: this connection is for web"},
		"the same host": {agent(), host.Account + "@web", ""},
	} {
		client, err := over(t, g.admitted(t, g.ticket(t, c.who)), c.login)
		if c.want == "" {
			if err != nil || exec(t, client, "echo in", "").out != "in\n" {
				t.Errorf("%s: %v", name, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	g.ahead.Store(int64(2 * time.Hour)) // the session goes with its token
	eventually(t, "the session ends", func() bool {
		return len(g.recorder.find(func(e access.Event) bool {
			return e.Closed != nil && strings.Contains(e.Closed.Cause, "token has expired")
		})) == 1
	})
}
