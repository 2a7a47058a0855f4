package ssh

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/localserver"
)

// another starts an sshd with settings of its own, which the gateway knows.
func another(t *testing.T, settings ...string) (*localserver.SSHD, Resource) {
	t.Helper()
	sshd, err := localserver.StartSSHD(t.Context(), filepath.Join(t.TempDir(), "sshd"), filepath.Join(host.Dir, "..", "keys", "target_ca.pub"), settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sshd.Close() })
	pinned, _, _, _, err := gossh.ParseAuthorizedKey([]byte(sshd.HostKey))
	if err != nil {
		t.Fatal(err)
	}
	return sshd, Resource{Access: access.Resource{Name: "another", Kind: access.SSH}, Address: sshd.Addr, Users: []string{sshd.Account}, HostKeys: []gossh.PublicKey{pinned}}
}

func TestExamine(t *testing.T) {
	t.Parallel()
	nobody := filepath.Join(t.TempDir(), "principals")
	if err := os.WriteFile(nobody, []byte("chaperone-doctor-nobody\n"+host.Account+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	strict := []string{"AllowTcpForwarding no"}
	otherKey := newSigner(t).PublicKey()
	for name, c := range map[string]struct {
		settings       []string
		change         func(*Resource)
		missing, risks []string // parts of them, all of them
	}{
		"strict":                 {strict, nil, nil, nil},
		"as sshd is":             {nil, nil, nil, []string{"the host forwards connections"}},
		"takes passwords":        {append([]string{"PasswordAuthentication yes"}, strict...), nil, nil, []string{"asks for passwords"}},
		"takes variables":        {append([]string{"AcceptEnv *"}, strict...), nil, nil, []string{"takes the variables LD_PRELOAD, PATH, BASH_ENV"}},
		"takes others' names":    {append([]string{"AuthorizedPrincipalsFile " + nobody}, strict...), nil, nil, []string{"a certificate for another account opens this one"}},
		"trusts no authority":    {append([]string{"TrustedUserCAKeys none"}, strict...), nil, []string{"does not take the gateway's certificate"}, nil},
		"runs one command alone": {append([]string{"ForceCommand false"}, strict...), nil, []string{"commands do not run"}, nil},
		"another host":           {strict, func(r *Resource) { r.HostKeys = []gossh.PublicKey{otherKey} }, []string{"the host's key is none of those that are pinned"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, r := another(t, c.settings...)
			if c.change != nil {
				c.change(&r)
			}
			x, err := Examine(t.Context(), host.keys, r, host.Account, time.Now)
			if err != nil {
				t.Fatal(err)
			}
			risks := slices.DeleteFunc(slices.Clone(x.Risks), func(l string) bool { // of the machine's own account
				return strings.Contains(l, "the account is root") || strings.Contains(l, "~/.ssh/authorized_keys")
			})
			for _, one := range []struct{ got, want []string }{{x.Missing, c.missing}, {risks, c.risks}} {
				if len(one.got) != len(one.want) {
					t.Errorf("got %q, want %q", one.got, one.want)
					continue
				}
				for i := range one.got {
					if !strings.Contains(one.got[i], one.want[i]) {
						t.Errorf("got %q, want %q", one.got[i], one.want[i])
					}
				}
			}
			if len(risks) > 0 && len(x.Lines) == 0 {
				t.Error("no line puts it right")
			}
		})
	}
	if _, err := Examine(t.Context(), host.keys, Resource{Address: "127.0.0.1:1"}, "x", time.Now); err == nil {
		t.Error("a host that is not there is examined")
	}
}

// A host whose key an authority certified is taken by that authority, for its own
// name, while the certificate lasts; and by nothing less.
func TestCertifiedHosts(t *testing.T) {
	t.Parallel()
	ca, other := newSigner(t), newSigner(t)
	for name, c := range map[string]struct {
		change func(*gossh.Certificate)
		signer gossh.Signer
		ok     bool
	}{
		"good":                 {func(*gossh.Certificate) {}, ca, true},
		"another authority's":  {func(*gossh.Certificate) {}, other, false},
		"for another host":     {func(c *gossh.Certificate) { c.ValidPrincipals = []string{"elsewhere"} }, ca, false},
		"for no host":          {func(c *gossh.Certificate) { c.ValidPrincipals = nil }, ca, false},
		"expired":              {func(c *gossh.Certificate) { c.ValidBefore = uint64(time.Now().Add(-time.Minute).Unix()) }, ca, false},
		"not yet good":         {func(c *gossh.Certificate) { c.ValidAfter = uint64(time.Now().Add(30 * time.Minute).Unix()) }, ca, false},
		"a user's certificate": {func(c *gossh.Certificate) { c.CertType = gossh.UserCert }, ca, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sshd, r := another(t)
			cert := &gossh.Certificate{Key: r.HostKeys[0], CertType: gossh.HostCert, ValidPrincipals: []string{"127.0.0.1"},
				ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix())}
			c.change(cert)
			if err := cert.SignCert(rand.Reader, c.signer); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(sshd.Dir, "host-cert.pub")
			config := filepath.Join(sshd.Dir, "sshd_config")
			b, err := os.ReadFile(config)
			if err == nil {
				err = os.WriteFile(path, gossh.MarshalAuthorizedKey(cert), 0o644)
			}
			if err == nil {
				err = os.WriteFile(config, append(b, "HostCertificate "+path+"\n"...), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			sshd.Close()
			if err := sshd.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.HostKeys, r.HostCAs = nil, []gossh.PublicKey{ca.PublicKey()}
			g := start(t)
			g.change(func(web *Resource) { web.HostKeys, web.HostCAs, web.Address = nil, r.HostCAs, r.Address })
			if got := exec(t, g.connect(t), "echo in", ""); (got.out == "in\n") != c.ok || !c.ok && got.status != 75 {
				t.Errorf("%+v", got)
			}
		})
	}
}
