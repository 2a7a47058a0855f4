// Package storetest opens real stores for the tests of what is built on them.
package storetest

import (
	"os"
	"path/filepath"
	"testing"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/localserver"
	"chaperone.dev/chaperone/internal/store"
)

// Dir returns a folder that lasts as long as the test, in memory where there is
// one: tests of stores write a lot.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "store-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Embedded opens a new embedded store, closed at the end of the test.
func Embedded(t testing.TB) *store.Embedded {
	t.Helper()
	e, err := store.OpenEmbedded(store.EmbeddedConfig{Path: filepath.Join(Dir(t), "store.db"), Key: store.NewKey()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// StartRedis starts a Redis server that lasts as long as the test.
func StartRedis(t testing.TB) *localserver.Redis {
	t.Helper()
	server, err := localserver.StartRedis(t.Context(), Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server
}

// RedisConfig names a new, empty store at a server.
func RedisConfig(server *localserver.Redis) store.RedisConfig {
	return store.RedisConfig{URL: access.NewSecret(server.URL()), Key: store.NewKey(), Name: "t" + access.NewRequestID()}
}

// Redis opens a store at a server, closed at the end of the test.
func Redis(t testing.TB, config store.RedisConfig) *store.Redis {
	t.Helper()
	r, err := store.OpenRedis(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}
