package ssh

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/localserver"
	"chaperone.dev/chaperone/internal/session/ssh/authority"
)

// newSigner makes a key that nobody certified.
func newSigner(t testing.TB) gossh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := gossh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// resign has the gateway's own authority sign what a change made of its
// certificate: the change alone is what is refused.
func resign(t testing.TB, p access.Principal, change func(*gossh.Certificate)) gossh.Signer {
	t.Helper()
	ca, err := gossh.ParsePrivateKey([]byte(host.File(t, "../keys/ca")))
	if err != nil {
		t.Fatal(err)
	}
	return certified(t, p, func(cert *gossh.Certificate) {
		change(cert)
		if err := cert.SignCert(rand.Reader, ca); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	g := start(t)
	other, err := authority.Open(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	revoked := agent()
	revoked.Token.ID = "tok_revoked"
	if err := g.registry.RevokeToken(t.Context(), revoked, "stolen"); err != nil {
		t.Fatal(err)
	}
	expired := agent()
	stranger := agent()
	stranger.Issuer = "gone"
	key := newSigner(t)
	foreign, err := other.Grant(key.PublicKey(), agent(), []string{"web"}, time.Now(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	ofTarget, err := host.keys.ForTarget(host.Account, "x", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		signer gossh.Signer
		login  string
		want   string // "" logs in
	}{
		"good":                        {resign(t, agent(), func(*gossh.Certificate) {}), host.Account + "@web", ""},
		"good, resource left out":     {certified(t, agent(), nil), host.Account, ""},
		"a key without a certificate": {newSigner(t), host.Account + "@web", "unable to authenticate"},
		"of another authority":        {must(gossh.NewCertSigner(foreign, key)), host.Account + "@web", "denied: the certificate is not valid here"},
		"of the authority of targets": {ofTarget, host.Account + "@web", "denied: the certificate is not valid here"},
		"for another resource":        {certified(t, agent(), nil), host.Account + "@db", "denied: the certificate is not for db"},
		"expired": {resign(t, expired, func(c *gossh.Certificate) {
			c.ValidAfter, c.ValidBefore = c.ValidAfter-300, uint64(time.Now().Add(-time.Second).Unix())
		}), host.Account + "@web", "denied: the certificate is not valid here"},
		"living for a year":       {resign(t, agent(), func(c *gossh.Certificate) { c.ValidBefore += 365 * 24 * 3600 }), host.Account + "@web", "denied: the certificate is not valid here"},
		"for everything":          {resign(t, agent(), func(c *gossh.Certificate) { c.ValidPrincipals = nil }), host.Account + "@web", "denied: the certificate is not valid here"},
		"of a host":               {resign(t, agent(), func(c *gossh.Certificate) { c.CertType = gossh.HostCert }), host.Account + "@web", "denied: the certificate is not valid here"},
		"without a principal":     {resign(t, agent(), func(c *gossh.Certificate) { delete(c.Extensions, authority.PrincipalExtension) }), host.Account + "@web", "denied: the certificate is not valid here"},
		"with another option":     {resign(t, agent(), func(c *gossh.Certificate) { c.CriticalOptions["force-command"] = "x" }), host.Account + "@web", "denied: the certificate is not valid here"},
		"usable everywhere":       {resign(t, agent(), func(c *gossh.Certificate) { c.CriticalOptions = nil }), host.Account + "@web", "denied: the certificate is not valid here"},
		"with an unknown member":  {resign(t, agent(), func(c *gossh.Certificate) { c.Extensions[authority.PrincipalExtension] = `{"root":true}` }), host.Account + "@web", "denied: the certificate is not valid here"},
		"of a revoked token":      {certified(t, revoked, nil), host.Account + "@web", "denied: the certificate is not valid here"},
		"of an issuer that went":  {certified(t, stranger, nil), host.Account + "@web", "denied: the certificate is not valid here"},
		"changed after the grant": {certified(t, agent(), func(c *gossh.Certificate) { c.ValidPrincipals = append(c.ValidPrincipals, "db") }), host.Account + "@db", "denied: the certificate is not valid here"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, err := g.login(t, c.login, gossh.PublicKeys(c.signer))
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if r := exec(t, client, "echo in", ""); r.out != "in\n" {
					t.Errorf("%+v", r)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// A client's certificate opens no host, even where the host trusts the clients'
// authority by mistake.
func TestCertificatesOpenNoHost(t *testing.T) {
	t.Parallel()
	trusting, err := localserver.StartSSHD(t.Context(), filepath.Join(t.TempDir(), "sshd"), filepath.Join(host.Dir, "..", "keys", "ca.pub"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { trusting.Close() })
	login := func(signer gossh.Signer) error {
		client, err := gossh.Dial("tcp", trusting.Addr, &gossh.ClientConfig{User: host.Account, Auth: []gossh.AuthMethod{gossh.PublicKeys(signer)},
			HostKeyCallback: gossh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second})
		if err == nil {
			client.Close()
		}
		return err
	}
	toAccount := func(c *gossh.Certificate) { c.ValidPrincipals = []string{host.Account} }
	if err := login(resign(t, agent(), func(c *gossh.Certificate) { toAccount(c); c.CriticalOptions = nil })); err != nil {
		t.Errorf("control: %v", err)
	}
	if err := login(resign(t, agent(), toAccount)); err == nil {
		t.Error("the host takes it")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestTokenAsPassword(t *testing.T) {
	t.Parallel()
	g := start(t)
	for password, want := range map[string]string{"good": "", "bad": "denied: no valid token", "": "unable to authenticate", "no-keys": "cannot check tokens now",
		strings.Repeat("x", 1023): "OpenSSH cuts passwords", strings.Repeat("x", 100_000): "denied: no valid token"} {
		client, err := g.login(t, host.Account+"@web", gossh.Password(password))
		if want == "" {
			if err != nil || exec(t, client, "echo in", "").out != "in\n" {
				t.Errorf("%.10s: %v", password, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.10s: got %v, want %q", password, err, want)
		}
	}
	eventually(t, "four denials are recorded", func() bool {
		return len(g.recorder.find(func(e access.Event) bool { return e.Denied != nil && e.Denied.Client == "10.1.2.3:4321" })) == 4
	})
}

// A certificate is public: who offers a victim's and signs with another key is
// nobody.
func TestIdentityIsProven(t *testing.T) {
	t.Parallel()
	g := start(t)
	victim := agent()
	victim.Subject, victim.User = "victim", "victim@example.com"
	whole := certified(t, victim, nil)
	if _, err := g.login(t, host.Account+"@web", gossh.PublicKeys(forged{whole.PublicKey(), newSigner(t)})); err == nil {
		t.Error("a stolen certificate logs in")
	}
	if opened := g.recorder.find(func(e access.Event) bool { return e.Opened != nil }); len(opened) != 0 {
		t.Errorf("%d sessions are recorded", len(opened))
	}
	client, err := g.login(t, host.Account+"@web", gossh.PublicKeys(whole))
	if err != nil {
		t.Fatal(err)
	}
	if r := exec(t, client, "echo in", ""); r.out != "in\n" {
		t.Errorf("control: %+v", r)
	}
	opened := g.recorder.find(func(e access.Event) bool { return e.Opened != nil })
	if len(opened) != 1 || opened[0].Opened.Session.Principal.Subject != "victim" {
		t.Errorf("control: recorded %+v", opened)
	}
}

// forged signs with another key.
type forged struct {
	key gossh.PublicKey
	own gossh.Signer
}

func (f forged) PublicKey() gossh.PublicKey { return f.key }
func (f forged) Sign(r io.Reader, data []byte) (*gossh.Signature, error) {
	return f.own.Sign(r, data)
}

// The first packet says all: strict key exchange, and no cipher that what is cut
// out of the beginning would leave usable.
func TestAlgorithms(t *testing.T) {
	t.Parallel()
	g := start(t)
	conn := g.dial(t)
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("SSH-2.0-test\r\n")); err != nil {
		t.Fatal(err)
	}
	var greeting []byte
	for one := make([]byte, 1); !bytes.HasSuffix(greeting, []byte("\n")); greeting = append(greeting, one...) {
		if _, err := io.ReadFull(conn, one); err != nil {
			t.Fatal(err)
		}
	}
	head := make([]byte, 5)
	if _, err := io.ReadFull(conn, head); err != nil {
		t.Fatal(err)
	}
	packet := make([]byte, binary.BigEndian.Uint32(head)-1)
	if _, err := io.ReadFull(conn, packet); err != nil {
		t.Fatal(err)
	}
	if packet[0] != 20 { // SSH_MSG_KEXINIT
		t.Fatalf("packet of type %d", packet[0])
	}
	var lists []string
	for rest := packet[17:]; len(lists) < 8; {
		n := binary.BigEndian.Uint32(rest)
		lists, rest = append(lists, string(rest[4:4+n])), rest[4+n:]
	}
	if !strings.Contains(lists[0], "kex-strict-s-v00@openssh.com") || !strings.HasPrefix(lists[0], "mlkem768x25519-sha256,curve25519-sha256") {
		t.Errorf("key exchange: %s", lists[0])
	}
	if lists[1] != "ssh-ed25519-cert-v01@openssh.com,ssh-ed25519" {
		t.Errorf("host keys: %s", lists[1])
	}
	for _, ciphers := range lists[2:4] {
		if ciphers != "aes128-gcm@openssh.com,aes256-gcm@openssh.com" {
			t.Errorf("ciphers: %s", ciphers)
		}
	}
}
