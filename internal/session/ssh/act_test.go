package ssh

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
)

func evil(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "evil")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Each channel has one act, and each act is judged, however many there are.
func TestSecondActOnAChannel(t *testing.T) {
	t.Parallel()
	g := start(t)
	client, file := g.connect(t), evil(t)
	ch, requests, err := client.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go gossh.DiscardRequests(requests)
	run := func(command string) bool {
		ok, err := ch.SendRequest("exec", true, gossh.Marshal(struct{ Text string }{command}))
		return ok && err == nil
	}
	if !run(": free; cat") {
		t.Fatal("the first act is refused")
	}
	if run("echo again") || run("touch "+file) {
		t.Error("a second act on the channel is taken")
	}
	if r := exec(t, client, ": free", ""); !r.refused("no-rule") {
		t.Errorf("another channel: %+v", r)
	}
	if r := exec(t, client, "echo twin", ""); r.out != "twin\n" {
		t.Errorf("another channel's allowed act: %+v", r)
	}
	if exists(file) {
		t.Error("it ran")
	}
}

// What a client sets reaches the host only when it is harmless or configured.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	g := start(t)
	show := func(c *gossh.Client, name, value string) string {
		session, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		_ = session.Setenv(name, value) // refused, perhaps
		return perform(session, "", func() error { return session.Run(": free; printf %s \"$" + name + "\"") }).out
	}
	through, control := g.connect(t), direct(t)
	for _, c := range []struct {
		name, value string
		passes      bool
	}{
		{"LC_TIME", "de_DE.UTF-8", true}, {"GIT_PROTOCOL", "version=2", true}, {"TEST_GIVEN", "x", true},
		{"TEST_OTHER", "x", false}, {"LC_TIME", "() { :;}; touch /tmp/x", false}, {"LC_TIME", "%n%n", false}, {"LC_TIME", strings.Repeat("x", 129), false},
	} {
		if got := show(control, c.name, c.value); got != c.value {
			t.Errorf("control: %s=%s arrives as %q", c.name, c.value, got)
		}
		if got := show(through, c.name, c.value); (got == c.value) != c.passes || !c.passes && got != "" {
			t.Errorf("%s=%s arrives as %q", c.name, c.value, got)
		}
	}
	decided := g.recorder.find(func(e access.Event) bool {
		return e.Decided != nil && e.Decided.Request.Action.SSH.Environment["TEST_GIVEN"] == "x"
	})
	if len(decided) != 1 {
		t.Errorf("%d decisions saw the variable", len(decided))
	}
}

// The host is reached only by a key that is pinned: nothing is sent to another.
func TestHostKeyChanged(t *testing.T) {
	t.Parallel()
	g := start(t)
	g.change(func(r *Resource) { r.HostKeys = []gossh.PublicKey{newSigner(t).PublicKey()} })
	if r := exec(t, g.connect(t), "echo in", ""); r.status != 75 || r.out != "" || !strings.Contains(r.errs, "does not prove to be the host") {
		t.Errorf("%+v", r)
	}
	g.change(func(r *Resource) {
		r.HostKeys, r.HostCAs, r.Address = nil, []gossh.PublicKey{newSigner(t).PublicKey()}, strings.Replace(r.Address, "127.0.0.1", "localhost", 1)
	})
	if r := exec(t, g.connect(t), "echo in", ""); r.status != 75 || r.out != "" {
		t.Errorf("a host without the certificate that is wanted: %+v", r)
	}
}

// What a client wants beside an act is judged, recorded and, but for connections
// that the host makes, never done.
func TestForwards(t *testing.T) {
	t.Parallel()
	g := start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var connections atomic.Int32
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			fmt.Fprint(conn, "hello")
			conn.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	client := g.connect(t)
	read := func(c *gossh.Client, address string) (string, error) {
		conn, err := c.Dial("tcp", address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		b := make([]byte, 5)
		n, _ := conn.Read(b)
		return string(b[:n]), nil
	}
	if got, err := read(direct(t), fmt.Sprintf("localhost:%d", port)); got != "hello" {
		t.Fatalf("control: %q %v", got, err)
	}
	if got, err := read(client, fmt.Sprintf("localhost:%d", port)); err == nil || !strings.Contains(err.Error(), "denied: ") {
		t.Errorf("where no rule leads: %q %v", got, err)
	}
	if got, err := read(client, fmt.Sprintf("127.0.0.1:%d", port)); got != "hello" {
		t.Errorf("where a rule leads: %q %v", got, err)
	}
	if n := connections.Load(); n != 2 {
		t.Errorf("%d connections were made", n)
	}
	if control, err := direct(t).Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Errorf("control: %v", err)
	} else {
		control.Close()
	}
	if _, err := client.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("the host listens for a client")
	}
	if _, err := client.ListenUnix(filepath.Join(t.TempDir(), "s")); err == nil {
		t.Error("the host listens on a socket for a client")
	}
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	for _, wish := range []string{"auth-agent-req@openssh.com", "x11-req", "unknown@example.com"} {
		if ok, err := session.SendRequest(wish, true, nil); ok || err != nil {
			t.Errorf("%s: %v %v", wish, ok, err)
		}
	}
	if _, _, err := client.OpenChannel("tun@openssh.com", nil); err == nil {
		t.Error("a tunnel opens")
	}
	never := g.recorder.find(func(e access.Event) bool { return e.Denied != nil && e.Denied.Denial.Reason == access.Unsupported })
	if len(never) != 3 { // agent, x11, tcpip-forward: a rule allows them
		t.Errorf("%d wishes are recorded as never served", len(never))
	}
}

// Channels beyond the bound are refused, and room is made again.
func TestChannelsAreBounded(t *testing.T) {
	t.Parallel()
	g := start(t, func(_ *gateway, c *Config) { c.MaxChannels = 3 })
	client := g.connect(t)
	var open []*gossh.Session
	for {
		session, err := client.NewSession()
		if err != nil {
			if !strings.Contains(err.Error(), "at most 3 channels") {
				t.Fatal(err)
			}
			break
		}
		open = append(open, session)
	}
	if len(open) != 3 {
		t.Errorf("%d channels open", len(open))
	}
	open[0].Close()
	eventually(t, "there is room again", func() bool { return exec(t, client, "echo in", "").out == "in\n" })
}

// A client that gets no session is told why, in answer to what it asks for.
func TestNoSession(t *testing.T) {
	t.Parallel()
	g := start(t, func(_ *gateway, c *Config) { c.MaxSessions = 2 })
	token := gossh.Password("good")
	for login, want := range map[string]string{host.Account + "@db": `no resource "db" that you may use`, host.Account: `no resource "" that you may use`} {
		client, err := g.login(t, login, token)
		if err != nil {
			t.Fatal(err)
		}
		if r := exec(t, client, "echo in", ""); !r.refused(want) {
			t.Errorf("%s: %+v", login, r)
		}
		if _, err := client.Dial("tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "there is no resource") {
			t.Errorf("%s: a forward: %v", login, err)
		}
		client.Close()
	}
	g.change(func(r *Resource) { r.Users = []string{host.Account, "root2"} })
	client, err := g.login(t, "nobody@web", token)
	if err != nil {
		t.Fatal(err)
	}
	if r := exec(t, client, "echo in", ""); !r.refused(`web has no account "nobody" for you`) {
		t.Errorf("%+v", r)
	}
	client.Close()
	g.connect(t)
	second := g.connect(t)
	eventually(t, "two sessions are open", func() bool { return exec(t, second, "echo in", "").out == "in\n" && len(g.live) == 2 })
	if r := exec(t, g.connect(t), "echo in", ""); !r.refused("too many sessions") {
		t.Errorf("a third: %+v", r)
	}
}

// A client that leaves, floods or says nonsense ends its own connection alone.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	g := start(t, func(_ *gateway, c *Config) { c.StartupTimeout = 300 * time.Millisecond })
	for name, text := range map[string]string{"nonsense": "GET / HTTP/1.1\r\n\r\n", "an endless greeting": strings.Repeat("x", 1<<20), "half a key exchange": "SSH-2.0-x\r\n\x00\x00\x04\x00", "a huge packet": "SSH-2.0-x\r\n\xff\xff\xff\xff", "silence": ""} {
		conn := g.dial(t)
		go func() { _, _ = conn.Write([]byte(text)) }() // it may be closed under us
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64<<10)
		for {
			if _, err := conn.Read(b); err != nil {
				if os.IsTimeout(err) {
					t.Errorf("%s: the connection stays open", name)
				}
				break
			}
		}
	}
	client := g.connect(t)
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		_, err = session.SendRequest("env", false, gossh.Marshal(struct{ Name, Value string }{fmt.Sprintf("LC_%c%c", 'A'+i%26, 'A'+i/26), "x"}))
		if err != nil {
			t.Fatal(err)
		}
	}
	if r := perform(session, "", func() error { return session.Run(": free; echo in") }); r.out != "in\n" {
		t.Errorf("%+v", r)
	}
	for _, e := range g.recorder.find(func(e access.Event) bool { return e.Executed != nil }) {
		if n := len(e.Executed.SSH.Environment); n != maxVariables {
			t.Errorf("%d variables", n)
		}
	}
	if r := exec(t, client, "echo "+strings.Repeat("x", maxCommand), ""); !r.refused("at most 65536 bytes") {
		t.Errorf("a huge command: %d %q", r.status, r.errs)
	}
	if r := exec(t, client, "echo \xff", ""); !r.refused("UTF-8") {
		t.Errorf("a command that is no text: %+v", r)
	}
}
