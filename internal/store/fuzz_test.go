package store

import (
	"bytes"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Whatever lies in the store is an authentic entry or an error; nothing but
// what was sealed under the very name is authentic.
func FuzzStored(f *testing.F) {
	key := Key{bytes.Repeat([]byte{7}, keyBytes)}
	e := &Embedded{seal: sealer{key: key, name: "embedded"}}
	r := &Redis{seal: sealer{key: key, name: "redis x"}}
	f.Add("k", e.encode("k", 3, []byte("value")), "3", "value", string(r.seal.record("k", 3, []byte("value"))))
	f.Add("k", []byte{}, "", "", "")
	f.Add("t", bytes.Repeat([]byte{0}, recordHeader), "18446744073709551615", "x", "y")
	f.Fuzz(func(t *testing.T, name string, raw []byte, number, value, mac string) {
		if got, err := e.decode(name, raw); err == nil && !bytes.Equal(e.encode(name, got.Version, got.Value), raw) {
			t.Fatalf("authentic, and not what was sealed: %+v", got)
		}
		if got, err := r.decode(name, []any{number, value, mac}); err == nil && mac != string(r.seal.record(name, got.Version, []byte(value))) {
			t.Fatalf("authentic, and not what was sealed: %+v", got)
		}
		message := redis.XMessage{ID: number, Values: map[string]any{"b": "0", "v": value, "m": mac}}
		if entries, err := r.entries(name, 0, []redis.XMessage{message}); err == nil && len(entries) > 0 &&
			mac != string(r.seal.entry(name, entries[0].Position, 0, []byte(value))) {
			t.Fatalf("authentic, and not what was sealed: %+v", entries)
		}
	})
}
