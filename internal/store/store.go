// Package store keeps what chaperone must remember beyond one request and share
// between replicas: versioned records, leases and an ordered change feed. There
// are two stores, Embedded (one file, one process) and Redis (many replicas),
// that keep the same contract.
//
// Every record, lease and feed entry carries a MAC made with a key that only
// replicas hold, bound to its name and version. The store refuses to return
// what it cannot authenticate: writing to the file or to the Redis is not
// enough to make chaperone believe anything. docs/design/approvals.md says what
// such a writer can still do.
package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The errors that callers branch on. They are wrapped with the operation.
var (
	// ErrNotFound: there is no such record or lease.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the record has another version than expected.
	ErrConflict = errors.New("version conflict")
	// ErrHeld: another owner holds the lease.
	ErrHeld = errors.New("lease is held by another owner")
	// ErrForged: an entry is not authentic, or older than one already seen. It
	// is never data.
	ErrForged = errors.New("entry is not authentic")
	// ErrTrimmed: the feed no longer holds what follows the position. The
	// reader must read the state anew and go on from Tail.
	ErrTrimmed = errors.New("feed no longer reaches back to the position")
	// ErrTooLarge: a key, value or payload exceeds its bound.
	ErrTooLarge = errors.New("too large")
	// ErrUnavailable: the store cannot be reached, is full or did not answer in
	// time. A write that failed so may still have happened.
	ErrUnavailable = errors.New("store unavailable")
)

// The bounds of what a store takes.
const (
	MaxKey     = 256     // bytes of a key, topic or owner
	MaxValue   = 4 << 20 // bytes of a record's value
	MaxLease   = 64 << 10
	MaxPayload = 64 << 10 // bytes of a feed entry
	MaxPage    = 1000     // records or leases of one page, entries of one Read

	// pageBytes ends a page early, so that listing large records stays bounded.
	pageBytes = 8 << 20
)

// Defaults of both stores.
const (
	DefaultTimeout    = 2 * time.Second // of one operation
	DefaultFeedLength = 4096            // entries kept per topic
)

// A Store is records, leases and a feed. All methods are safe for concurrent
// use and return within the configured timeout (Read: within a second more).
// Keys, topics and owners are printable ASCII without spaces.
type Store interface {
	Records
	Leases
	Feed
	// Close ends the store; later calls return ErrUnavailable.
	Close() error
}

// A Record is an authentic value. Versions grow over the life of the store and
// are never used twice, so an old version of a key cannot become current again.
type Record struct {
	Key     string
	Value   []byte // the caller's own copy
	Version uint64 // never 0
}

// A Page is one part of a listing, in the order of the keys.
type Page[T any] struct {
	Items []T
	Next  string // pass it as after; "" when the listing is complete
}

// Records are values with compare-and-swap.
type Records interface {
	// Get returns the record of key, or ErrNotFound.
	Get(ctx context.Context, key string) (Record, error)
	// Put stores value if the record has version expect (0: if there is none)
	// and returns its new version, or ErrConflict. When it returns nil the
	// record is as durable as the store can make it.
	Put(ctx context.Context, key string, value []byte, expect uint64) (uint64, error)
	// Delete removes the record if it has version expect, or returns
	// ErrConflict. There is nothing to delete when there is no record.
	Delete(ctx context.Context, key string, expect uint64) error
	// List returns up to limit records whose keys begin with prefix and come
	// after the key after. Records changed meanwhile may show either way.
	List(ctx context.Context, prefix, after string, limit int) (Page[Record], error)
}

// A Lease is a claim that ends by itself unless its owner renews it.
type Lease struct {
	Key   string
	Owner string
	Value []byte
}

// Leases are claims with an end. In the embedded store they live in memory:
// when its process dies, so do they.
type Leases interface {
	// Acquire takes the lease for ttl, or returns ErrHeld. An owner that holds
	// it already takes it anew, with the new value and ttl.
	Acquire(ctx context.Context, key, owner string, value []byte, ttl time.Duration) error
	// Renew gives each of the owner's leases its whole ttl again and returns
	// the keys of those that it no longer holds.
	Renew(ctx context.Context, owner string, keys ...string) (lost []string, err error)
	// Release ends the leases that the owner still holds.
	Release(ctx context.Context, owner string, keys ...string) error
	// Holder returns the live lease of key, or ErrNotFound.
	Holder(ctx context.Context, key string) (Lease, error)
	// Holders returns up to limit live leases, like List.
	Holders(ctx context.Context, prefix, after string, limit int) (Page[Lease], error)
}

// A Position is a place in a topic. It grows, not always by one; 0 is before
// the first entry.
type Position uint64

// An Entry is one authentic element of a topic.
type Entry struct {
	Position Position
	Payload  []byte
}

// Feed is an ordered, replayable sequence of entries per topic. Entries are
// chained: each names the one before it, so a reader notices a missing one.
type Feed interface {
	// Publish appends payload and returns its position.
	Publish(ctx context.Context, topic string, payload []byte) (Position, error)
	// Read returns up to limit entries after the position, in order. It blocks
	// until there is one. After at most a second without any it returns none
	// and no error, which tells the reader that the feed is alive.
	Read(ctx context.Context, topic string, after Position, limit int) ([]Entry, error)
	// Tail returns the position of the newest entry. To follow a state: Tail,
	// read the state, then Read from there.
	Tail(ctx context.Context, topic string) (Position, error)
}

// checkName refuses keys, topics and owners that the stores could treat
// differently.
func checkName(what, name string) error {
	if name == "" {
		return fmt.Errorf("%s is empty", what)
	}
	if len(name) > MaxKey {
		return fmt.Errorf("%s of %d bytes: %w", what, len(name), ErrTooLarge)
	}
	return checkPrefix(what, name)
}

func checkPrefix(what, name string) error {
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return fmt.Errorf("%s %q has a character that is not printable ASCII", what, name)
		}
	}
	return nil
}

func checkSize(what string, value []byte, most int) error {
	if len(value) > most {
		return fmt.Errorf("%s of %d bytes, %d at most: %w", what, len(value), most, ErrTooLarge)
	}
	return nil
}

func checkLimit(limit int) error {
	if limit < 1 || limit > MaxPage {
		return fmt.Errorf("limit %d is not within 1 and %d", limit, MaxPage)
	}
	return nil
}

// within bounds one operation. The cause tells the store's timeout from the
// caller's.
func within(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, timeout, ErrUnavailable)
}
