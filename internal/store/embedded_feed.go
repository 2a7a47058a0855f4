package store

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// readPause is how long Read waits for a first entry.
const readPause = time.Second

func same(a, b []byte) bool { return hmac.Equal(a, b) }

// An entry is stored under its position as the position before it, its MAC and
// its payload.
const entryHeader = 8 + 32

func positionKey(p Position) []byte { return binary.BigEndian.AppendUint64(nil, uint64(p)) }

// Publish implements Feed. Positions of the embedded feed grow by one.
func (e *Embedded) Publish(ctx context.Context, topic string, payload []byte) (Position, error) {
	if err := errors.Join(checkName("topic", topic), checkSize("payload", payload, MaxPayload)); err != nil {
		return 0, fmt.Errorf("publish: %w", err)
	}
	at, err := transact(ctx, e, true, func(tx *bbolt.Tx) (Position, error) {
		entries, err := tx.Bucket(feedBucket).CreateBucketIfNotExists([]byte(topic))
		if err != nil {
			return 0, atDisk(err)
		}
		before := Position(entries.Sequence())
		next, err := entries.NextSequence()
		if err != nil {
			return 0, atDisk(err)
		}
		at := Position(next)
		b := positionKey(before)
		b = append(b, e.seal.entry(topic, at, before, payload)...)
		if err := entries.Put(positionKey(at), append(b, payload...)); err != nil {
			return 0, atDisk(err)
		}
		return at, atDisk(trim(entries, at, e.config.FeedLength))
	})
	if err != nil {
		return 0, fmt.Errorf("publish to %s: %w", topic, err)
	}
	e.wake(topic)
	return at, nil
}

// trim removes the entries that are more than length behind the newest.
func trim(entries *bbolt.Bucket, newest Position, length int) error {
	cursor := entries.Cursor()
	for k, _ := cursor.First(); len(k) == 8 && binary.BigEndian.Uint64(k)+uint64(length) <= uint64(newest); k, _ = cursor.First() {
		if err := cursor.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// Tail implements Feed.
func (e *Embedded) Tail(ctx context.Context, topic string) (Position, error) {
	if err := checkName("topic", topic); err != nil {
		return 0, fmt.Errorf("tail: %w", err)
	}
	at, err := transact(ctx, e, false, func(tx *bbolt.Tx) (Position, error) {
		entries := tx.Bucket(feedBucket).Bucket([]byte(topic))
		if entries == nil {
			return 0, nil
		}
		return Position(entries.Sequence()), nil
	})
	if err != nil {
		return 0, fmt.Errorf("tail of %s: %w", topic, err)
	}
	return at, nil
}

// Read implements Feed.
func (e *Embedded) Read(ctx context.Context, topic string, after Position, limit int) ([]Entry, error) {
	if err := errors.Join(checkName("topic", topic), checkLimit(limit)); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	pause := time.NewTimer(readPause)
	defer pause.Stop()
	for {
		changed := e.watch(topic) // before looking, so that no entry is missed
		entries, err := transact(ctx, e, false, func(tx *bbolt.Tx) ([]Entry, error) {
			return e.following(tx.Bucket(feedBucket).Bucket([]byte(topic)), topic, after, limit)
		})
		if err != nil {
			return nil, fmt.Errorf("read %s after %d: %w", topic, after, err)
		}
		if len(entries) > 0 {
			return entries, nil
		}
		select {
		case <-changed:
		case <-pause.C:
			return nil, nil
		case <-ctx.Done():
			return nil, fmt.Errorf("read %s: %w", topic, context.Cause(ctx))
		case <-e.closed:
			return nil, fmt.Errorf("read %s: closed: %w", topic, ErrUnavailable)
		}
	}
}

func (e *Embedded) following(entries *bbolt.Bucket, topic string, after Position, limit int) ([]Entry, error) {
	if entries == nil {
		if after != 0 {
			return nil, ErrTrimmed
		}
		return nil, nil
	}
	chain := chain{seal: e.seal, topic: topic, last: after}
	cursor := entries.Cursor()
	for k, b := cursor.Seek(positionKey(after + 1)); k != nil && len(chain.entries) < limit; k, b = cursor.Next() {
		if len(k) != 8 || len(b) < entryHeader {
			return nil, fmt.Errorf("entry: %w", ErrForged)
		}
		more, err := chain.add(Position(binary.BigEndian.Uint64(k)), Position(binary.BigEndian.Uint64(b)), b[8:entryHeader], bytes.Clone(b[entryHeader:]))
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	if len(chain.entries) == 0 && Position(entries.Sequence()) != after {
		return nil, ErrTrimmed
	}
	return chain.entries, nil
}

// A chain takes entries one after the other as long as each names the one
// before it.
type chain struct {
	seal    sealer
	topic   string
	last    Position
	entries []Entry
}

// add returns false when something between the last entry and this one is
// missing: what came before it still holds. A chain that begins so is ErrTrimmed.
func (c *chain) add(at, before Position, mac, payload []byte) (bool, error) {
	if !same(mac, c.seal.entry(c.topic, at, before, payload)) {
		if len(c.entries) > 0 {
			return false, nil // the next Read begins with it and fails
		}
		return false, fmt.Errorf("entry %d: %w", at, ErrForged)
	}
	if before != c.last {
		if len(c.entries) > 0 {
			return false, nil
		}
		return false, ErrTrimmed
	}
	c.last = at
	c.entries = append(c.entries, Entry{Position: at, Payload: payload})
	return true, nil
}

// watch returns a channel that is closed at the next Publish to the topic.
func (e *Embedded) watch(topic string) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.changed[topic]
	if c == nil {
		c = make(chan struct{})
		e.changed[topic] = c
	}
	return c
}

func (e *Embedded) wake(topic string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.changed[topic]; c != nil {
		close(c)
		delete(e.changed, topic)
	}
}
