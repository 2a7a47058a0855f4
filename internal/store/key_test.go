package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestLoadOrCreateKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "store.key")
	keys := make([]Key, 8)
	var wg sync.WaitGroup
	for i := range keys { // replicas that start at once
		wg.Go(func() {
			var err error
			if keys[i], err = LoadOrCreateKey(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, key := range keys {
		if len(key.secret) != keyBytes || string(key.secret) != string(keys[0].secret) {
			t.Fatal("the replicas have different keys")
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Fatalf("left %v, %v", left, err)
	}
	text, err := os.ReadFile(path)
	ok(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if printed := fmt.Sprintf(verb, struct{ Key Key }{keys[0]}); !strings.Contains(printed, "redacted") {
			t.Errorf("%s prints %s", verb, printed)
		}
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o601, 0o666} {
		ok(t, os.Chmod(path, mode))
		if _, err := LoadOrCreateKey(path); err == nil {
			t.Errorf("took a key of mode %#o", mode)
		}
	}
	ok(t, os.Chmod(path, 0o400))
	if _, err := LoadOrCreateKey(path); err != nil {
		t.Errorf("mode 0400: %v", err)
	}
	ok(t, os.Chmod(path, 0o600))
	for name, content := range map[string]string{"empty": "", "short": "abcd", "no hex": strings.Repeat("z", 64), "long": string(text) + "00"} {
		ok(t, os.WriteFile(path, []byte(content), 0o600))
		if _, err := LoadOrCreateKey(path); err == nil || (content != "" && strings.Contains(err.Error(), content)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := LoadOrCreateKey(filepath.Dir(path)); err == nil {
		t.Error("took a folder")
	}
}

func TestDerivedKeysAreApart(t *testing.T) {
	t.Parallel()
	one, other := NewKey(), NewKey()
	again := one
	if one.Derived("a") != again.Derived("a") {
		t.Error("replicas with one key would not understand each other")
	}
	if one.Derived("a") == one.Derived("b") || one.Derived("a") == other.Derived("a") {
		t.Error("two keys are the same")
	}
}
