package issuer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/clocktest"
)

type fakeClock = clocktest.Clock

func newFakeClock() *fakeClock { return clocktest.New(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)) }

// published are the kids of the key set, which holds nothing private.
func published(t *testing.T, k *Keys) (kids []string) {
	t.Helper()
	b, err := k.Published()
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(b, &set); err != nil {
		t.Fatal(err)
	}
	for _, one := range set.Keys {
		if one["d"] != nil || one["alg"] != "ES256" || one["use"] != "sig" || one["kty"] != "EC" {
			t.Errorf("published %v", one)
		}
		kids = append(kids, one["kid"].(string))
	}
	return kids
}

func signer(t *testing.T, k *Keys) string {
	t.Helper()
	one, err := k.signing()
	if err != nil {
		t.Fatal(err)
	}
	return one.kid
}

func TestKeysRotate(t *testing.T) {
	t.Parallel()
	clock, dir := newFakeClock(), filepath.Join(t.TempDir(), "keys")
	open := func() *Keys {
		t.Helper()
		k, err := OpenKeys(dir, time.Hour, 5*time.Minute, clock.Now)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k := open()
	first := signer(t, k)
	if info, err := os.Stat(filepath.Join(dir, first+".pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the key's file: %v %v", info, err)
	}
	if got := signer(t, open()); got != first {
		t.Errorf("another replica signs with %s", got)
	}
	clock.Advance(time.Hour)
	kids := published(t, k)
	if len(kids) != 2 || kids[0] != first || signer(t, k) != first {
		t.Fatalf("after an hour %v are published and %s signs", kids, signer(t, k))
	}
	if got := published(t, open()); !slices.Equal(got, kids) {
		t.Errorf("another replica publishes %v", got)
	}
	clock.Advance(publishAhead)
	if signer(t, k) != kids[1] || len(published(t, k)) != 2 {
		t.Errorf("the new key does not sign, or the old one is gone too soon")
	}
	clock.Advance(5*time.Minute - time.Second)
	if len(published(t, k)) != 2 {
		t.Error("a key is gone before its last token")
	}
	clock.Advance(lookAgain)
	if got := published(t, k); !slices.Equal(got, kids[1:]) {
		t.Errorf("published %v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, first+".pem")); !os.IsNotExist(err) {
		t.Errorf("the dead key's file: %v", err)
	}
}

func TestKeysRefuse(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir, file string)
		want  string
	}{
		"a folder of others": {func(t *testing.T, dir, _ string) { must(t, os.Chmod(dir, 0o750)) }, "others can reach"},
		"a file of others":   {func(t *testing.T, _, file string) { must(t, os.Chmod(file, 0o640)) }, "mode 0600"},
		"no key":             {func(t *testing.T, _, file string) { must(t, os.WriteFile(file, []byte("hunter2"), 0o600)) }, "not one key"},
		"no P-256 key": {func(t *testing.T, _, file string) {
			must(t, os.WriteFile(file, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0o600))
		}, "P-256"},
		"a name without a time": {func(t *testing.T, dir, file string) { must(t, os.Rename(file, filepath.Join(dir, "mine.pem"))) }, "when it was made"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "keys")
			k, err := OpenKeys(dir, time.Hour, time.Minute, time.Now)
			must(t, err)
			c.spoil(t, dir, filepath.Join(dir, signer(t, k)+".pem"))
			_, err = OpenKeys(dir, time.Hour, time.Minute, time.Now)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if _, err := OpenKeys(t.TempDir(), time.Minute, time.Minute, time.Now); err == nil {
		t.Error("keys are made that could not be published in time")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
