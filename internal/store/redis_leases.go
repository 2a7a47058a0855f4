package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// leaseBatch is how many leases one script touches, so that the server is never
// blocked for long.
const leaseBatch = 256

// Acquire implements Leases.
func (r *Redis) Acquire(ctx context.Context, key, owner string, value []byte, ttl time.Duration) error {
	if err := checkLease(key, owner, value, ttl); err != nil {
		return fmt.Errorf("acquire: %w", err)
	}
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	mac := r.seal.lease(key, owner, ttl.Milliseconds(), value)
	held, err := acquireLease.Run(ctx, r.client, []string{r.name("lease", key), r.name("leases")},
		owner, value, ttl.Milliseconds(), mac, key).Bool()
	if err != nil {
		err = r.failed(ctx, err)
	} else if !held {
		err = ErrHeld
	}
	if err != nil {
		return fmt.Errorf("acquire %s: %w", key, err)
	}
	return nil
}

// Renew implements Leases.
func (r *Redis) Renew(ctx context.Context, owner string, keys ...string) (lost []string, err error) {
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	for chunk := range slices.Chunk(keys, leaseBatch) {
		kept, err := renewLeases.Run(ctx, r.client, r.leaseNames(chunk), owner).Int64Slice()
		if err != nil {
			return nil, fmt.Errorf("renew: %w", r.failed(ctx, err))
		}
		for i, key := range chunk {
			if i >= len(kept) || kept[i] != 1 {
				lost = append(lost, key)
			}
		}
	}
	return lost, nil
}

// Release implements Leases.
func (r *Redis) Release(ctx context.Context, owner string, keys ...string) error {
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	for chunk := range slices.Chunk(keys, leaseBatch) {
		args := []any{owner}
		for _, key := range chunk {
			args = append(args, key)
		}
		names := append([]string{r.name("leases")}, r.leaseNames(chunk)...)
		if err := releaseLeases.Run(ctx, r.client, names, args...).Err(); err != nil {
			return fmt.Errorf("release: %w", r.failed(ctx, err))
		}
	}
	return nil
}

func (r *Redis) leaseNames(keys []string) []string {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = r.name("lease", key)
	}
	return names
}

// Holder implements Leases.
func (r *Redis) Holder(ctx context.Context, key string) (Lease, error) {
	if err := checkName("key", key); err != nil {
		return Lease{}, fmt.Errorf("holder: %w", err)
	}
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	leases, err := r.holders(ctx, []string{key})
	if err == nil && len(leases) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Lease{}, fmt.Errorf("holder of %s: %w", key, err)
	}
	return leases[0], nil
}

// Holders implements Leases.
func (r *Redis) Holders(ctx context.Context, prefix, after string, limit int) (Page[Lease], error) {
	if err := errors.Join(checkPrefix("prefix", prefix), checkPrefix("key", after), checkLimit(limit)); err != nil {
		return Page[Lease]{}, fmt.Errorf("holders: %w", err)
	}
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	var page Page[Lease]
	keys, more, err := r.names(ctx, r.name("leases"), prefix, after, limit)
	if err == nil {
		page.Items, err = r.holders(ctx, keys)
	}
	if err != nil {
		return Page[Lease]{}, fmt.Errorf("holders of %s: %w", prefix, err)
	}
	if more {
		page.Next = keys[len(keys)-1]
	}
	return page, nil
}

// holders returns the live ones of the leases and takes the others out of the
// index.
func (r *Redis) holders(ctx context.Context, keys []string) (leases []Lease, err error) {
	for chunk := range slices.Chunk(keys, leaseBatch) {
		pipe := r.client.Pipeline()
		fields, ttls := make([]*redis.SliceCmd, len(chunk)), make([]*redis.DurationCmd, len(chunk))
		for i, key := range chunk {
			ttls[i] = pipe.PTTL(ctx, r.name("lease", key)) // first: it may end in between
			fields[i] = pipe.HMGet(ctx, r.name("lease", key), "o", "v", "t", "m")
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return nil, r.failed(ctx, err)
		}
		var ended []string
		for i, key := range chunk {
			lease, err := r.lease(key, fields[i].Val(), ttls[i].Val())
			if errors.Is(err, ErrNotFound) {
				ended = append(ended, key)
				continue
			}
			if err != nil {
				return nil, err
			}
			leases = append(leases, lease)
		}
		if err := r.forget(ctx, ended); err != nil {
			return nil, err
		}
	}
	return leases, nil
}

// lease checks a lease. One that would last longer than its owner asked for, or
// for ever, is forged.
func (r *Redis) lease(key string, fields []any, left time.Duration) (Lease, error) {
	if !slices.ContainsFunc(fields, func(f any) bool { return f != nil }) {
		return Lease{}, ErrNotFound
	}
	forged := fmt.Errorf("lease %s: %w", key, ErrForged)
	texts, ok := texts(fields, 4)
	if !ok {
		return Lease{}, forged
	}
	ttl, err := strconv.ParseInt(texts[2], 10, 64)
	if err != nil || !same([]byte(texts[3]), r.seal.lease(key, texts[0], ttl, []byte(texts[1]))) {
		return Lease{}, forged
	}
	const none, endless = -2, -1 // as PTTL says it
	if left == none {
		return Lease{}, ErrNotFound // began in between
	}
	if left == endless || left.Milliseconds() > ttl {
		return Lease{}, forged
	}
	return Lease{Key: key, Owner: texts[0], Value: []byte(texts[1])}, nil
}

func (r *Redis) forget(ctx context.Context, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	args := make([]any, len(keys))
	for i, key := range keys {
		args[i] = key
	}
	names := append([]string{r.name("leases")}, r.leaseNames(keys)...)
	return r.failed(ctx, forgetLeases.Run(ctx, r.client, names, args...).Err())
}
