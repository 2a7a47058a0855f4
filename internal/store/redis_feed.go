package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// blockFor is how long one Read waits at the server. It is also how long a
	// Read may go on after its context ends.
	blockFor = 250 * time.Millisecond
	// publishTries bounds the races with other publishers of a topic. One of
	// them wins every round.
	publishTries = 64
)

// An entry of a stream has the id "<position>-0".
func streamID(p Position) string { return strconv.FormatUint(uint64(p), 10) + "-0" }

func positionOf(id string) (Position, error) {
	digits, ok := strings.CutSuffix(id, "-0")
	n, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("entry %s: %w", id, ErrForged)
	}
	return Position(n), nil
}

// Publish implements Feed. The position and the one before it are part of the
// MAC, so they are drawn first and the script checks that they still hold.
func (r *Redis) Publish(ctx context.Context, topic string, payload []byte) (Position, error) {
	if err := errors.Join(checkName("topic", topic), checkSize("payload", payload, MaxPayload)); err != nil {
		return 0, fmt.Errorf("publish: %w", err)
	}
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	for range publishTries {
		at, done, err := r.tryPublish(ctx, topic, payload)
		if err != nil {
			return 0, fmt.Errorf("publish to %s: %w", topic, err)
		}
		if done {
			return at, nil
		}
	}
	return 0, fmt.Errorf("publish to %s: lost %d races: %w", topic, publishTries, ErrUnavailable)
}

func (r *Redis) tryPublish(ctx context.Context, topic string, payload []byte) (Position, bool, error) {
	drawn, err := nextPosition.Run(ctx, r.client, []string{r.name("number"), r.name("feed", topic)}).StringSlice()
	if err != nil {
		return 0, false, r.failed(ctx, err)
	}
	if len(drawn) != 2 {
		return 0, false, fmt.Errorf("position: %w", ErrForged)
	}
	before, err := positionOf(drawn[1])
	if err != nil {
		return 0, false, err
	}
	at, err := positionOf(drawn[0] + "-0")
	if err != nil {
		return 0, false, err
	}
	if at <= before {
		return 0, false, fmt.Errorf("position %d after %d: %w", at, before, ErrForged)
	}
	done, err := appendEntry.Run(ctx, r.client, []string{r.name("feed", topic)}, streamID(before), streamID(at),
		uint64(before), payload, r.seal.entry(topic, at, before, payload), r.config.FeedLength).Bool()
	if err != nil && strings.Contains(err.Error(), "equal or smaller than the target stream top item") {
		return 0, false, nil // another publisher was faster
	}
	return at, done, r.failed(ctx, err)
}

// Tail implements Feed.
func (r *Redis) Tail(ctx context.Context, topic string) (Position, error) {
	if err := checkName("topic", topic); err != nil {
		return 0, fmt.Errorf("tail: %w", err)
	}
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	at, err := r.tail(ctx, topic)
	if err != nil {
		return 0, fmt.Errorf("tail of %s: %w", topic, err)
	}
	return at, nil
}

func (r *Redis) tail(ctx context.Context, topic string) (Position, error) {
	last, err := r.client.XRevRangeN(ctx, r.name("feed", topic), "+", "-", 1).Result()
	if err != nil {
		return 0, r.failed(ctx, err)
	}
	if len(last) == 0 {
		return 0, nil
	}
	return positionOf(last[0].ID)
}

// Read implements Feed.
func (r *Redis) Read(ctx context.Context, topic string, after Position, limit int) ([]Entry, error) {
	if err := errors.Join(checkName("topic", topic), checkLimit(limit)); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	ctx, cancel := within(ctx, r.config.Timeout+blockFor)
	defer cancel()
	messages, err := r.messages(ctx, topic, after, limit)
	var entries []Entry
	if err == nil {
		entries, err = r.entries(topic, after, messages)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s after %d: %w", topic, after, err)
	}
	return entries, nil
}

func (r *Redis) messages(ctx context.Context, topic string, after Position, limit int) ([]redis.XMessage, error) {
	stream := r.name("feed", topic)
	messages, err := r.client.XRangeN(ctx, stream, "("+streamID(after), "+", int64(limit)).Result()
	if err != nil || len(messages) > 0 {
		return messages, r.failed(ctx, err)
	}
	last, err := r.tail(ctx, topic)
	if err != nil {
		return nil, err
	}
	if last < after { // entries that the reader has seen are gone
		return nil, ErrTrimmed
	}
	streams, err := r.client.XRead(ctx, &redis.XReadArgs{
		Streams: []string{stream, streamID(after)}, Count: int64(limit), Block: blockFor}).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil || len(streams) != 1 {
		return nil, r.failed(ctx, err)
	}
	return streams[0].Messages, nil
}

func (r *Redis) entries(topic string, after Position, messages []redis.XMessage) ([]Entry, error) {
	chain := chain{seal: r.seal, topic: topic, last: after}
	for _, m := range messages {
		at, err := positionOf(m.ID)
		var before uint64
		if err == nil {
			before, err = strconv.ParseUint(text(m, "b"), 10, 64)
		}
		more := false
		if err == nil {
			more, err = chain.add(at, Position(before), []byte(text(m, "m")), []byte(text(m, "v")))
		} else if len(chain.entries) == 0 {
			err = fmt.Errorf("entry %s: %w", m.ID, ErrForged)
		} else {
			err = nil // the next Read begins with it and fails
		}
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	return chain.entries, nil
}

func text(m redis.XMessage, field string) string {
	s, _ := m.Values[field].(string)
	return s
}
