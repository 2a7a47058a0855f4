package authority

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"chaperone.dev/chaperone/internal/access"
)

// Replicas that start at once have the same keys, and nobody else has them.
func TestOpen(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ssh")
	opened := make([]*Keys, 8)
	var all sync.WaitGroup
	for i := range opened {
		all.Go(func() {
			k, err := Open(dir)
			if err != nil {
				t.Error(err)
			}
			opened[i] = k
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for _, k := range opened {
		if AuthorizedKey(k.CA()) != AuthorizedKey(opened[0].CA()) || AuthorizedKey(k.TargetCA()) != AuthorizedKey(opened[0].TargetCA()) {
			t.Error("replicas have different keys")
		}
	}
	if AuthorizedKey(opened[0].CA()) == AuthorizedKey(opened[0].TargetCA()) {
		t.Error("clients and hosts trust the same authority")
	}
	for _, name := range []string{hostFile, caFile, targetCAFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	public, err := os.ReadFile(filepath.Join(dir, "target_ca.pub"))
	if err != nil || strings.TrimSpace(string(public)) != AuthorizedKey(opened[0].TargetCA()) {
		t.Errorf("target_ca.pub holds %q, %v", public, err)
	}
	for name, path := range map[string]string{"a key": filepath.Join(dir, caFile), "the folder": dir} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, info.Mode().Perm()|0o040); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil {
			t.Errorf("%s that others can read is taken", name)
		}
		if err := os.Chmod(path, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir); err != nil {
		t.Error(err)
	}
}

// A certificate lives no longer than the token, nor than is configured.
func TestGrantLife(t *testing.T) {
	t.Parallel()
	k, err := Open(filepath.Join(t.TempDir(), "ssh"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseUserKey(AuthorizedKey(k.host.PublicKey()))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	for left, want := range map[time.Duration]time.Duration{time.Hour: 5 * time.Minute, time.Minute: time.Minute, 5 * time.Second: 0, -time.Second: 0} {
		p := access.Principal{Subject: "a", Token: access.TokenRef{ID: "tok_1", ExpiresAt: now.Add(left)}}
		cert, err := k.Grant(key, p, []string{"web"}, now, 5*time.Minute)
		if want == 0 {
			if err == nil {
				t.Errorf("a token with %s left is certified", left)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Unix(int64(cert.ValidBefore), 0).Sub(now); got != want {
			t.Errorf("with %s left it lives %s", left, got)
		}
		grant, err := k.Read(cert, now.Add(want-time.Second))
		if err != nil || grant.Principal.Subject != "a" || grant.Resources[0] != "web" {
			t.Errorf("%+v %v", grant, err)
		}
		if _, err := k.Read(cert, now.Add(want)); err == nil {
			t.Error("it is good when it is over")
		}
	}
	for _, line := range []string{"", "ssh-rsa AAAAB3NzaC1yc2E", "no-pty " + AuthorizedKey(key), AuthorizedKey(key) + "\n" + AuthorizedKey(key), AuthorizedKey(certOf(t, k))} {
		if _, err := ParseUserKey(line); err == nil {
			t.Errorf("%.30q is taken for a key", line)
		}
	}
}

// certOf is a certificate, which is no plain key.
func certOf(t *testing.T, k *Keys) gossh.PublicKey {
	t.Helper()
	hosts, err := k.Hosts([]string{"gateway"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return hosts[0].PublicKey()
}
