package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// inFlight bounds the operations that wait for the disk at once.
const inFlight = 64

var (
	recordBucket = []byte("records")
	feedBucket   = []byte("feed")
)

// EmbeddedConfig says where an embedded store lives.
type EmbeddedConfig struct {
	Path       string           // of the file; its folder is made when absent
	Key        Key              // from LoadOrCreateKey
	Clock      func() time.Time // decides when leases end; nil is time.Now
	Timeout    time.Duration    // of one operation; 0 is DefaultTimeout
	FeedLength int              // entries kept per topic; 0 is DefaultFeedLength
}

// Embedded is a Store in one file, for one process at a time: the file is
// locked while it is open. Records and the feed are on disk (fsync) when a
// write returns; leases are in memory.
type Embedded struct {
	config EmbeddedConfig
	seal   sealer
	db     *bbolt.DB
	seen   watermark
	slots  chan struct{}  // one per operation at the disk
	ops    sync.WaitGroup // operations that outlived their caller
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	leases  map[string]heldLease
	changed map[string]chan struct{} // per topic; closed at the next Publish
}

var _ Store = (*Embedded)(nil)

// OpenEmbedded opens the store, making it when absent. It fails when
// another process still has it open after the timeout, or when others than its
// owner can reach the file.
func OpenEmbedded(config EmbeddedConfig) (*Embedded, error) {
	if config.Clock == nil {
		config.Clock = time.Now
	}
	if config.Timeout <= 0 {
		config.Timeout = DefaultTimeout
	}
	if config.FeedLength <= 0 {
		config.FeedLength = DefaultFeedLength
	}
	e := &Embedded{
		config: config, seal: sealer{key: config.Key, name: "embedded"}, slots: make(chan struct{}, inFlight),
		closed: make(chan struct{}), leases: map[string]heldLease{}, changed: map[string]chan struct{}{},
	}
	if err := e.seal.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(config.Path), 0o700); err != nil {
		return nil, fmt.Errorf("embedded store: %w", err)
	}
	info, err := os.Stat(config.Path)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("embedded store %s has mode %#o: others can reach it; run chmod 600 on it", config.Path, info.Mode().Perm())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("embedded store: %w", err)
	}
	e.db, err = bbolt.Open(config.Path, 0o600, &bbolt.Options{Timeout: config.Timeout, FreelistType: bbolt.FreelistMapType, NoStatistics: true})
	if err != nil {
		return nil, fmt.Errorf("embedded store %s: %w (is another process using it?)", config.Path, err)
	}
	err = e.db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(recordBucket)
		if err == nil {
			_, err = tx.CreateBucketIfNotExists(feedBucket)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded store: %w", err), e.db.Close())
	}
	return e, nil
}

// Close waits for operations at the disk and unlocks the file.
func (e *Embedded) Close() error {
	e.once.Do(func() { close(e.closed) })
	e.mu.Lock()
	clear(e.leases)
	e.mu.Unlock()
	err := e.db.Close()
	e.ops.Wait()
	return err
}

// transact runs fn in a transaction and gives up waiting for it when ctx ends
// or the disk does not answer in time; it may then still complete. fn's own
// errors come back as they are, any other as ErrUnavailable.
func transact[T any](ctx context.Context, e *Embedded, write bool, fn func(*bbolt.Tx) (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	var none T
	ctx, cancel := within(ctx, e.config.Timeout)
	defer cancel()
	select {
	case e.slots <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("disk is busy: %w", context.Cause(ctx))
	case <-e.closed:
		return none, fmt.Errorf("closed: %w", ErrUnavailable)
	}
	done := make(chan outcome, 1)
	e.ops.Add(1)
	go func() {
		defer e.ops.Done()
		defer func() { <-e.slots }()
		var out outcome
		defer func() {
			if r := recover(); r != nil { // bbolt panics on a damaged file
				out = outcome{err: fmt.Errorf("damaged: %v: %w", r, ErrUnavailable)}
			}
			done <- out
		}()
		out.value, out.err = transaction(e.db, write, fn)
	}()
	select {
	case out := <-done:
		return out.value, out.err
	case <-ctx.Done():
		return none, fmt.Errorf("no answer from the disk: %w", context.Cause(ctx))
	}
}

func transaction[T any](db *bbolt.DB, write bool, fn func(*bbolt.Tx) (T, error)) (value T, err error) {
	run := db.View
	if write {
		run = db.Update
	}
	var own error
	err = run(func(tx *bbolt.Tx) error {
		value, own = fn(tx)
		return own
	})
	if own != nil {
		return value, own
	}
	if err != nil {
		return value, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return value, nil
}

// A record is stored as its version, its MAC and its value.
const recordHeader = 8 + 32

func (e *Embedded) encode(key string, version uint64, value []byte) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, recordHeader+len(value)), version)
	b = append(b, e.seal.record(key, version, value)...)
	return append(b, value...)
}

// decode copies: the bytes are bbolt's and end with the transaction.
func (e *Embedded) decode(key string, b []byte) (Record, error) {
	if len(b) < recordHeader {
		return Record{}, fmt.Errorf("record %s: %w", key, ErrForged)
	}
	r := Record{Key: key, Version: binary.BigEndian.Uint64(b), Value: bytes.Clone(b[recordHeader:])}
	if !same(b[8:recordHeader], e.seal.record(key, r.Version, r.Value)) {
		return Record{}, fmt.Errorf("record %s: %w", key, ErrForged)
	}
	return r, nil
}

// version returns the authentic version of the stored record, 0 for none.
func (e *Embedded) version(records *bbolt.Bucket, key string) (uint64, error) {
	b := records.Get([]byte(key))
	if b == nil {
		return 0, nil
	}
	r, err := e.decode(key, b)
	return r.Version, err
}

// Get implements Records.
func (e *Embedded) Get(ctx context.Context, key string) (Record, error) {
	if err := checkName("key", key); err != nil {
		return Record{}, fmt.Errorf("get: %w", err)
	}
	floor := e.seen.floor(key)
	r, err := transact(ctx, e, false, func(tx *bbolt.Tx) (Record, error) {
		b := tx.Bucket(recordBucket).Get([]byte(key))
		if b == nil {
			return Record{}, ErrNotFound
		}
		return e.decode(key, b)
	})
	if err == nil {
		err = e.seen.admit(key, r.Version, floor)
	}
	if err != nil {
		return Record{}, fmt.Errorf("get %s: %w", key, err)
	}
	return r, nil
}

// Put implements Records.
func (e *Embedded) Put(ctx context.Context, key string, value []byte, expect uint64) (uint64, error) {
	if err := errors.Join(checkName("key", key), checkSize("value", value, MaxValue)); err != nil {
		return 0, fmt.Errorf("put: %w", err)
	}
	floor := e.seen.floor(key)
	version, err := transact(ctx, e, true, func(tx *bbolt.Tx) (uint64, error) {
		records := tx.Bucket(recordBucket)
		current, err := e.version(records, key)
		if err != nil {
			return 0, err
		}
		if current != expect || outdated(expect, floor) {
			return 0, ErrConflict
		}
		version, err := records.NextSequence()
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if version <= max(current, floor) { // the counter was set back
			return 0, ErrForged
		}
		return version, atDisk(records.Put([]byte(key), e.encode(key, version, value)))
	})
	if err != nil {
		return 0, fmt.Errorf("put %s: %w", key, err)
	}
	e.seen.raise(key, version)
	return version, nil
}

// Delete implements Records.
func (e *Embedded) Delete(ctx context.Context, key string, expect uint64) error {
	if err := checkName("key", key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	_, err := transact(ctx, e, true, func(tx *bbolt.Tx) (none struct{}, err error) {
		records := tx.Bucket(recordBucket)
		current, err := e.version(records, key)
		if err == nil && current != expect {
			err = ErrConflict
		}
		if err != nil {
			return none, err
		}
		return none, atDisk(records.Delete([]byte(key)))
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// List implements Records.
func (e *Embedded) List(ctx context.Context, prefix, after string, limit int) (Page[Record], error) {
	if err := errors.Join(checkPrefix("prefix", prefix), checkPrefix("key", after), checkLimit(limit)); err != nil {
		return Page[Record]{}, fmt.Errorf("list: %w", err)
	}
	page, err := transact(ctx, e, false, func(tx *bbolt.Tx) (page Page[Record], err error) {
		size := 0
		cursor := tx.Bucket(recordBucket).Cursor()
		for k, b := cursor.Seek([]byte(max(prefix, after))); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, b = cursor.Next() {
			if string(k) == after {
				continue
			}
			if len(page.Items) == limit || size > pageBytes {
				page.Next = page.Items[len(page.Items)-1].Key
				break
			}
			r, err := e.decode(string(k), b)
			if err != nil {
				return Page[Record]{}, err
			}
			size += len(r.Value)
			page.Items = append(page.Items, r)
		}
		return page, nil
	})
	if err != nil {
		return Page[Record]{}, fmt.Errorf("list %s: %w", prefix, err)
	}
	return page, nil
}

func atDisk(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}
