package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/directory"
)

func jwtOf(issued, expires time.Time) access.Secret {
	claims := fmt.Sprintf(`{"iat":%d,"exp":%d}`, issued.Unix(), expires.Unix())
	return access.NewSecret("e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".AA")
}

// TestFreshness: a token is renewed when a third of its life is left, and never
// in a busy loop.
func TestFreshness(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	for name, c := range map[string]struct {
		token access.Secret
		fresh bool
		next  time.Duration
	}{
		"new":            {jwtOf(now, now.Add(5*time.Minute)), true, 201 * time.Second},
		"long":           {jwtOf(now, now.Add(time.Hour)), true, 55*time.Minute + time.Second},
		"nearly over":    {jwtOf(now.Add(-4*time.Minute), now.Add(time.Minute)), false, 5 * time.Second},
		"over":           {jwtOf(now.Add(-time.Hour), now.Add(-time.Minute)), false, 5 * time.Second},
		"without an iat": {jwtOf(time.Unix(0, 0), now.Add(time.Hour)), true, 55*time.Minute + time.Second},
		"not even a JWT": {access.NewSecret("hunter2"), false, 5 * time.Second},
		"without an exp": {jwtOf(now, time.Unix(0, 0)), false, 5 * time.Second},
	} {
		if got := fresh(c.token, now); got != c.fresh {
			t.Errorf("%s: fresh is %v", name, got)
		}
		if got := nextRenewal(c.token, now); got != c.next {
			t.Errorf("%s: renewed in %s, want %s", name, got, c.next)
		}
	}
}

// TestTokenFilesAreRenewed: whole, for their owner alone, in the form that libpq
// reads.
func TestTokenFilesAreRenewed(t *testing.T) {
	t.Parallel()
	files := &tokenFiles{dir: t.TempDir(), resources: []directory.Resource{
		{Name: "orders", Kind: access.Postgres, Host: "::1", Port: 5432, Database: "orders"}, {Name: "billing", Kind: access.HTTP}}}
	for _, token := range []string{"first", "second"} {
		if err := files.write(access.NewSecret(token)); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"pgpass": `\:\:1:5432:orders:*:` + token + "\n", "token": token + "\n", "header": "Authorization: Bearer " + token + "\n"} {
			b, err := os.ReadFile(files.path(name))
			info, statErr := os.Stat(files.path(name))
			if err != nil || statErr != nil || string(b) != want || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %q %v %v", name, b, err, statErr)
			}
		}
	}
	if left, err := filepath.Glob(files.path(".new-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
