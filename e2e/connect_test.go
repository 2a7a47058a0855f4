package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/examples/demo"
)

// connecting makes the ssh of a token that goes through the HTTPS port.
func connecting(t *testing.T, s *demo.Site, tok string) *hostClient {
	t.Helper()
	dir := t.TempDir()
	c := &hostClient{dir: dir, config: filepath.Join(dir, "config"), env: append(os.Environ(), "CHAPERONE_TOKEN="+tok, "CHAPERONE_CA="+filepath.Join(s.Dir, "ca.crt"), "HOME="+dir, "LC_ALL=C", "GIT_CONFIG_GLOBAL=/dev/null")}
	lines, err := client(t, s, dir, c.env, "env", "web", "--ssh-config="+filepath.Join(dir, "keys"), "--connect")
	if err != nil {
		t.Fatal(err)
	}
	c.configure(t, lines)
	return c
}

// TestConnect: ssh, scp, sftp, rsync and git through the HTTPS port, without a
// certificate or a password; judged and cut like any other.
func TestConnect(t *testing.T) {
	t.Parallel()
	s := site(t)
	tok := exchanged(t, s, token(t, s, demo.Omar), "", "audience", "web") // like no other
	c := connecting(t, s, tok)
	dir := free(t, s)
	if out, errs, status := c.run(t, "given", "ssh", "web", ": free; cat; echo err >&2; exit 3"); out != "given" || errs != "err\n" || status != 3 {
		t.Errorf("a command: %d %q %q", status, out, errs)
	}
	if _, errs, status := c.ssh(t, "web", "dd of="+dir+"/evil"); status != 77 || !strings.Contains(errs, "chaperone: denied: ") {
		t.Errorf("what no rule allows: %d %q", status, errs)
	}
	if _, err := os.Stat(dir + "/evil"); err == nil {
		t.Error("it ran")
	}
	content := bytes.Repeat([]byte("\x00\x01 a file of any kind\n"), 50_000)
	if err := os.WriteFile(filepath.Join(c.dir, "up"), content, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"scp", "-q", "up", "web:" + dir + "/one"}, {"scp", "-q", "-O", "web:" + dir + "/one", "down"}, {"rsync", "-a", "down", "web:" + dir + "/two"},
		{"git", "init", "-q", "--bare", dir + "/repo.git"}, {"git", "clone", "-q", "web:" + dir + "/repo.git", "clone"}} {
		if out, errs, status := c.run(t, "", args[0], args[1:]...); status != 0 {
			t.Errorf("%v: %d %s %s", args, status, out, errs)
		}
	}
	if got, err := os.ReadFile(dir + "/two"); err != nil || sha256.Sum256(got) != sha256.Sum256(content) {
		t.Errorf("%d bytes came back: %v", len(got), err)
	}
	// Without a configuration, as the documents say.
	plain := []string{"-F", "/dev/null", "-o", "ProxyCommand=" + program + " connect web --gateway " + s.URL(), "-o", "HostKeyAlias=localhost", "-o", "UserKnownHostsFile=" + filepath.Join(c.dir, "keys", "known_hosts"),
		"-o", "BatchMode=yes", s.Host.Account + "@web", "true"}
	if out, errs, status := c.run(t, "", "/usr/bin/ssh", plain...); status != 0 {
		t.Errorf("without a configuration: %d %s %s", status, out, errs)
	}
	cmd, _, _ := c.command(t.Context(), "ssh", "web", ": free; echo started; sleep 60")
	out, errs := &lockedBuffer{}, &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if out.String() == "" {
			return fmt.Errorf("it has not started: %s", errs)
		}
		return nil
	})
	if out, err := cli(t, s, person(t, s, demo.Alan), "sessions", "kill", "--token", tokenID(tok), "--cause", "enough"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.ExitCode(); status != 77 || !strings.Contains(errs.String(), "an operator ended this session: enough") {
		t.Errorf("killed: %d %s", status, errs)
	}
}

// TestConnectWithOpenSSL: nothing of ours is needed on the client: OpenSSH passes
// over the answer to the CONNECT.
func TestConnectWithOpenSSL(t *testing.T) {
	t.Parallel()
	s := site(t)
	c := connecting(t, s, token(t, s, demo.Omar))
	if _, errs, status := c.ssh(t, "web", "true"); status != 0 { // leaves known_hosts
		t.Fatal(errs)
	}
	script := fmt.Sprintf(`{ printf 'CONNECT web:22 HTTP/1.1\r\nHost: web:22\r\nProxy-Authorization: Bearer %%s\r\n\r\n' "$CHAPERONE_TOKEN"; cat; } | openssl s_client -quiet -verify_quiet -verify_return_error -CAfile "$CHAPERONE_CA" -servername localhost -connect localhost:%d`, s.HTTPSPort)
	proxy := filepath.Join(c.dir, "proxy")
	if err := os.WriteFile(proxy, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, errs, status := c.ssh(t, "-o", "ProxyCommand="+proxy, "web", ": free; echo there"); status != 0 || out != "there\n" {
		t.Errorf("%d %q %s", status, out, errs)
	}
}

// https opens TLS to the gateway and speaks no more than that.
func https(t *testing.T, s *demo.Site, protocol string) *tls.Conn {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(s.Dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	conn, err := tls.Dial("tcp", fmt.Sprintf("localhost:%d", s.HTTPSPort), &tls.Config{RootCAs: roots, NextProtos: []string{protocol}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestConnectAttacks: a CONNECT leads to hosts of the configuration and to
// nothing else, and what is sent behind one that is refused leads nowhere.
func TestConnectAttacks(t *testing.T) {
	t.Parallel()
	s := site(t)
	omar, ada := token(t, s, demo.Omar), token(t, s, demo.Ada)
	// Something that listens within, and must hear nothing.
	inside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	heard := make(chan string, 16)
	go func() {
		for {
			conn, err := inside.Accept()
			if err != nil {
				return
			}
			heard <- conn.RemoteAddr().String()
			conn.Close()
		}
	}()
	const greeting = "SSH-2.0-early\r\n"
	const second = "GET /.well-known/chaperone HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
	say := func(text string) string {
		conn := https(t, s, "http/1.1")
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		b := make([]byte, 4096)
		for !strings.Contains(got.String(), "SSH-2.0-chaperone") {
			n, err := conn.Read(b)
			got.Write(b[:n])
			if err != nil {
				break
			}
		}
		return got.String()
	}
	connect := func(authority, tok string, more ...string) string {
		lines := append([]string{"CONNECT " + authority + " HTTP/1.1", "Host: " + authority}, more...)
		if tok != "" {
			lines = append(lines, "Proxy-Authorization: Bearer "+tok)
		}
		return strings.Join(lines, "\r\n") + "\r\n\r\n"
	}
	if got := say(connect("web:22", omar) + greeting); !strings.HasPrefix(got, "HTTP/1.1 200 ") || !strings.Contains(got, "SSH-2.0-chaperone") {
		t.Errorf("twin: %q", got)
	}
	for name, c := range map[string]struct{ request, want string }{
		"no token":                 {connect("web:22", ""), "HTTP/1.1 401 "},
		"a bad token":              {connect("web:22", "bad"), "HTTP/1.1 401 "},
		"no rule for it":           {connect("web:22", ada), "HTTP/1.1 404 "},
		"another port":             {connect("web:80", omar), "HTTP/1.1 400 "},
		"the host's address":       {connect(s.Host.Addr, omar), "HTTP/1.1 400 "},
		"something within":         {connect(inside.Addr().String(), omar), "HTTP/1.1 400 "},
		"the same by name":         {connect(strings.Replace(inside.Addr().String(), "127.0.0.1", "localhost", 1), omar), "HTTP/1.1 400 "},
		"loopback":                 {connect("127.0.0.1:22", omar), "HTTP/1.1 404 "},
		"a database":               {connect("orders:22", omar), "HTTP/1.1 404 "},
		"another host header":      {"CONNECT orders:22 HTTP/1.1\r\nHost: web:22\r\nProxy-Authorization: Bearer " + omar + "\r\n\r\n", "HTTP/1.1 404 "},
		"a ticket of its own":      {connect("web:22", "", "x-chaperone-ticket: AAAAAAAAAAAAAAAAAAAAAAAAAA"), "HTTP/1.1 401 "},
		"bytes behind":             {connect("web:22", "") + greeting + second + omar + "\r\n\r\n", "HTTP/1.1 401 "},
		"bytes behind one unknown": {connect("elsewhere:22", omar) + greeting + second + omar + "\r\n\r\n", "HTTP/1.1 404 "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := say(c.request); !strings.HasPrefix(got, c.want) || strings.Contains(got, "SSH-2.0") || strings.Count(got, "HTTP/1.1 ") != 1 {
				t.Errorf("got %q, want %s", got, c.want)
			}
		})
	}
	t.Cleanup(func() {
		if len(heard) > 0 {
			t.Errorf("%s reached what is within", <-heard)
		}
	})
	if conn, err := net.Dial("tcp", inside.Addr().String()); err != nil { // control: it can be reached
		t.Fatal(err)
	} else {
		conn.Close()
		<-heard
	}
	// A client of the SSH port writes Envoy's header itself.
	conn, err := net.Dial("tcp", fmt.Sprintf("localhost:%d", s.SSHPort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	forged := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11"), 0, 12+3+26, 10, 1, 2, 3, 10, 0, 0, 1)
	forged = append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(forged, 4321), 22), 0xE0, 0, 26)
	if _, err := conn.Write(append(forged, "AAAAAAAAAAAAAAAAAAAAAAAAAA"...)); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := gossh.NewClientConn(conn, "web:22", &gossh.ClientConfig{User: "web", HostKeyCallback: gossh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second}); err == nil {
		t.Error("a client that writes the header itself is let in")
	}
}

// TestConnectHTTP2: two users' streams in one connection have each their own
// identity, at once and after one another.
func TestConnectHTTP2(t *testing.T) {
	t.Parallel()
	s := site(t)
	pem, err := os.ReadFile(filepath.Join(s.Dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	dialled := 0
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots}, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP2(true)
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled++
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	defer transport.CloseIdleConnections()
	login := func(tok string) *gossh.Client {
		t.Helper()
		in, out := io.Pipe()
		r := &http.Request{Method: http.MethodConnect, Host: "web:22", URL: &url.URL{Scheme: "https", Host: fmt.Sprintf("localhost:%d", s.HTTPSPort)},
			Header: http.Header{"Proxy-Authorization": {"Bearer " + tok}}, Body: in, ContentLength: -1}
		answer, err := transport.RoundTrip(r.WithContext(t.Context()))
		if err != nil || answer.StatusCode != http.StatusOK || answer.ProtoMajor != 2 {
			t.Fatalf("%v %v", answer, err)
		}
		conn, channels, requests, err := gossh.NewClientConn(&stream{answer.Body, out}, "web:22", &gossh.ClientConfig{User: s.Host.Account, HostKeyCallback: gossh.InsecureIgnoreHostKey()})
		if err != nil {
			t.Fatal(err)
		}
		c := gossh.NewClient(conn, channels, requests)
		t.Cleanup(func() { c.Close() })
		return c
	}
	run := func(c *gossh.Client) error {
		session, err := c.NewSession()
		if err != nil {
			return err
		}
		defer session.Close()
		return session.Run(": free; true")
	}
	first := exchanged(t, s, token(t, s, demo.Omar), "", "audience", "web")
	second := exchanged(t, s, token(t, s, demo.Omar), "", "audience", "web")
	one, two := login(first), login(second)
	if err := run(one); err != nil {
		t.Fatal(err)
	}
	if err := run(two); err != nil {
		t.Fatal(err)
	}
	if out, err := cli(t, s, person(t, s, demo.Alan), "sessions", "kill", "--token", tokenID(first), "--cause", "enough"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if err := one.Wait(); err == nil {
		t.Error("a killed session ends as if it had been left")
	}
	if err := run(two); err != nil {
		t.Errorf("the other's session ends too: %v", err)
	}
	if err := run(login(second)); err != nil {
		t.Errorf("a third stream: %v", err)
	}
	if dialled != 1 {
		t.Errorf("%d connections", dialled)
	}
}

// A stream of HTTP/2 as a connection.
type stream struct {
	io.ReadCloser
	out *io.PipeWriter
}

func (s *stream) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s *stream) Close() error {
	_ = s.out.Close() // it never fails
	return s.ReadCloser.Close()
}
func (*stream) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*stream) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*stream) SetDeadline(time.Time) error      { return nil }
func (*stream) SetReadDeadline(time.Time) error  { return nil }
func (*stream) SetWriteDeadline(time.Time) error { return nil }
