package store

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

const keyBytes = 32

// A Key authenticates entries. All replicas share it and nobody else has it.
// It prints as "[redacted]".
type Key struct{ secret []byte }

// NewKey returns a fresh random key.
func NewKey() Key {
	secret := make([]byte, keyBytes)
	rand.Read(secret) // never fails
	return Key{secret}
}

// String returns "[redacted]".
func (Key) String() string { return "[redacted]" }

// GoString returns "[redacted]".
func (Key) GoString() string { return "[redacted]" }

// LogValue returns "[redacted]".
func (Key) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// Derived returns a key for something else that all replicas share. It says
// nothing of this one, nor of those for other purposes.
func (k Key) Derived(purpose string) (key [32]byte) {
	b, err := hkdf.Key(sha256.New, k.secret, nil, "chaperone store key\x00"+purpose, len(key))
	if err != nil {
		panic("store: " + err.Error()) // the length is right
	}
	return [32]byte(b)
}

// LoadOrCreateKey reads the key in the file path: 64 hexadecimal digits. When
// there is no file it makes one with a fresh key and mode 0600; of several
// processes that do so at once, one wins and the others take its key. A file
// that others than its owner can read or write is refused.
func LoadOrCreateKey(path string) (Key, error) {
	key, err := loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := createKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return Key{}, fmt.Errorf("create store key: %w", err)
	}
	return loadKey(path)
}

func loadKey(path string) (Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return Key{}, fmt.Errorf("store key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Key{}, fmt.Errorf("store key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return Key{}, fmt.Errorf("store key %s is not a regular file", path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return Key{}, fmt.Errorf("store key %s has mode %#o: others can reach it; run chmod 600 on it, or use a new key if they may have read it", path, perm)
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return Key{}, fmt.Errorf("store key: %w", err)
	}
	secret, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(secret) != keyBytes { // the error would quote the key
		return Key{}, fmt.Errorf("store key %s is not %d hexadecimal digits", path, 2*keyBytes)
	}
	return Key{secret}, nil
}

// createKey writes a whole, synced file and links it into place, so that no
// reader ever sees half a key.
func createKey(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".store-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(hex.EncodeToString(NewKey().secret) + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// The kinds of entry that a MAC keeps apart.
const (
	kindRecord = "record"
	kindLease  = "lease"
	kindFeed   = "feed"
)

// A sealer makes and checks the MACs of one store.
type sealer struct {
	key  Key
	name string // of the store within a shared server
}

// seal returns HMAC-SHA256 over the kind, the numbers and the parts, each with
// its length, so that no entry can pass for another one.
func (s sealer) seal(kind string, numbers []uint64, parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, s.key.secret)
	write := func(b []byte) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(b)))
		mac.Write(size[:])
		mac.Write(b)
	}
	write([]byte("chaperone store 1"))
	write([]byte(s.name))
	write([]byte(kind))
	for _, n := range numbers {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], n)
		write(b[:])
	}
	for _, p := range parts {
		write(p)
	}
	return mac.Sum(nil)
}

func (s sealer) record(key string, version uint64, value []byte) []byte {
	return s.seal(kindRecord, []uint64{version}, []byte(key), value)
}

func (s sealer) lease(key, owner string, ttl int64, value []byte) []byte {
	return s.seal(kindLease, []uint64{uint64(ttl)}, []byte(key), []byte(owner), value)
}

func (s sealer) entry(topic string, at, before Position, payload []byte) []byte {
	return s.seal(kindFeed, []uint64{uint64(at), uint64(before)}, []byte(topic), payload)
}

func (s sealer) check() error {
	if len(s.key.secret) != keyBytes {
		return errors.New("store has no key")
	}
	return nil
}
