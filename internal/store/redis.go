package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"chaperone.dev/chaperone/internal/access"
)

// RedisConfig says which Redis holds the store.
type RedisConfig struct {
	URL        access.Secret // redis://, rediss:// or unix://, with user and password
	Key        Key           // the same for all replicas
	Name       string        // keeps several chaperones in one Redis apart; "" is chaperone
	Timeout    time.Duration // of one operation; 0 is DefaultTimeout
	FeedLength int           // entries kept per topic; 0 is DefaultFeedLength
}

// Redis is a Store in a Redis server (7 or later), for any number of replicas.
// Every change is one script, so it is atomic. How durable it is, is the
// server's setting: see docs/design/approvals.md.
type Redis struct {
	config RedisConfig
	seal   sealer
	client *redis.Client
	seen   watermark
}

var _ Store = (*Redis)(nil)

// OpenRedis connects to the server and refuses one that may evict records.
func OpenRedis(ctx context.Context, config RedisConfig) (*Redis, error) {
	if config.Name == "" {
		config.Name = "chaperone"
	}
	if config.Timeout <= 0 {
		config.Timeout = DefaultTimeout
	}
	if config.FeedLength <= 0 {
		config.FeedLength = DefaultFeedLength
	}
	r := &Redis{config: config, seal: sealer{key: config.Key, name: "redis " + config.Name}}
	if err := errors.Join(r.seal.check(), checkName("store name", config.Name)); err != nil {
		return nil, err
	}
	options, err := redis.ParseURL(config.URL.Reveal())
	if err != nil { // it may quote the password
		return nil, errors.New("redis store: the url is not redis://, rediss:// or unix://")
	}
	options.MaxRetries = -1 // a repeated write would meet its own first try
	options.DialerRetries = 1
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout = config.Timeout, config.Timeout, config.Timeout
	options.PoolTimeout = config.Timeout
	options.ContextTimeoutEnabled = true
	options.PoolSize, options.MaxActiveConns = 32, 64
	options.DisableIdentity = true
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	logging.Disable() // it would write to standard error; every fault also comes back from its call
	r.client = redis.NewClient(options)
	if err := r.check(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("redis store: %w", err), r.client.Close())
	}
	return r, nil
}

// check refuses a server that forgets records when memory runs out: a forgotten
// revocation would be lifted.
func (r *Redis) check(ctx context.Context) error {
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	info, err := r.client.Info(ctx, "memory").Result()
	if err != nil && strings.HasPrefix(err.Error(), "NOPERM") {
		return r.failed(ctx, r.client.Ping(ctx).Err())
	}
	if err != nil {
		return r.failed(ctx, err)
	}
	for line := range strings.Lines(info) {
		policy, ok := strings.CutPrefix(strings.TrimSpace(line), "maxmemory_policy:")
		if ok && strings.HasPrefix(policy, "allkeys") {
			return fmt.Errorf("the server has maxmemory-policy %s and may drop records; set noeviction", policy)
		}
	}
	return nil
}

// Close ends all connections.
func (r *Redis) Close() error { return r.client.Close() }

// failed turns whatever the client says into one of this package's errors. A
// caller that has gone gets its own reason.
func (r *Redis) failed(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, ErrUnavailable) {
		return cause
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// The braces make all keys of a store one slot of a Redis Cluster.
func (r *Redis) name(parts ...string) string {
	return "{" + r.config.Name + "}:" + strings.Join(parts, ":")
}

// Get implements Records.
func (r *Redis) Get(ctx context.Context, key string) (Record, error) {
	if err := checkName("key", key); err != nil {
		return Record{}, fmt.Errorf("get: %w", err)
	}
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	floor := r.seen.floor(key)
	fields, err := r.client.HMGet(ctx, r.name("record", key), "n", "v", "m").Result()
	if err != nil {
		return Record{}, fmt.Errorf("get %s: %w", key, r.failed(ctx, err))
	}
	record, err := r.decode(key, fields)
	if err == nil {
		err = r.seen.admit(key, record.Version, floor)
	}
	if err != nil {
		return Record{}, fmt.Errorf("get %s: %w", key, err)
	}
	return record, nil
}

// decode takes the version, value and MAC as the server returned them.
func (r *Redis) decode(key string, fields []any) (Record, error) {
	if !slices.ContainsFunc(fields, func(f any) bool { return f != nil }) {
		return Record{}, ErrNotFound
	}
	forged := fmt.Errorf("record %s: %w", key, ErrForged)
	texts, ok := texts(fields, 3)
	if !ok {
		return Record{}, forged
	}
	version, err := strconv.ParseUint(texts[0], 10, 64)
	if err != nil || version == 0 || strconv.FormatUint(version, 10) != texts[0] {
		return Record{}, forged
	}
	record := Record{Key: key, Version: version, Value: []byte(texts[1])}
	if !same([]byte(texts[2]), r.seal.record(key, version, record.Value)) {
		return Record{}, forged
	}
	return record, nil
}

func texts(fields []any, n int) ([]string, bool) {
	if len(fields) != n {
		return nil, false
	}
	out := make([]string, n)
	for i, f := range fields {
		text, ok := f.(string)
		if !ok {
			return nil, false
		}
		out[i] = text
	}
	return out, true
}

// next draws a number that no earlier call of any replica got, even when the
// server lost its memory in between.
func (r *Redis) next(ctx context.Context) (uint64, error) {
	text, err := nextNumber.Run(ctx, r.client, []string{r.name("number")}).Text()
	if err != nil {
		return 0, r.failed(ctx, err)
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("number: %w", ErrForged)
	}
	return n, nil
}

// Put implements Records.
func (r *Redis) Put(ctx context.Context, key string, value []byte, expect uint64) (uint64, error) {
	if err := errors.Join(checkName("key", key), checkSize("value", value, MaxValue)); err != nil {
		return 0, fmt.Errorf("put: %w", err)
	}
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	version, err := r.put(ctx, key, value, expect)
	if err != nil {
		return 0, fmt.Errorf("put %s: %w", key, err)
	}
	r.seen.raise(key, version)
	return version, nil
}

func (r *Redis) put(ctx context.Context, key string, value []byte, expect uint64) (uint64, error) {
	floor := r.seen.floor(key)
	if outdated(expect, floor) {
		return 0, ErrConflict
	}
	version, err := r.next(ctx)
	if err != nil {
		return 0, err
	}
	if version <= max(floor, expect) { // the counter was set back
		return 0, fmt.Errorf("version %d: %w", version, ErrForged)
	}
	stored, err := putRecord.Run(ctx, r.client, []string{r.name("record", key), r.name("records")},
		expect, version, value, r.seal.record(key, version, value), key).Bool()
	if err != nil {
		return 0, r.failed(ctx, err)
	}
	if !stored {
		return 0, ErrConflict
	}
	return version, nil
}

// Delete implements Records.
func (r *Redis) Delete(ctx context.Context, key string, expect uint64) error {
	if err := checkName("key", key); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	deleted, err := deleteRecord.Run(ctx, r.client, []string{r.name("record", key), r.name("records")}, expect, key).Bool()
	if err != nil {
		err = r.failed(ctx, err)
	} else if !deleted {
		err = ErrConflict
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// List implements Records.
func (r *Redis) List(ctx context.Context, prefix, after string, limit int) (Page[Record], error) {
	if err := errors.Join(checkPrefix("prefix", prefix), checkPrefix("key", after), checkLimit(limit)); err != nil {
		return Page[Record]{}, fmt.Errorf("list: %w", err)
	}
	ctx, cancel := within(ctx, r.config.Timeout)
	defer cancel()
	page, err := r.list(ctx, prefix, after, limit)
	if err != nil {
		return Page[Record]{}, fmt.Errorf("list %s: %w", prefix, err)
	}
	return page, nil
}

func (r *Redis) list(ctx context.Context, prefix, after string, limit int) (page Page[Record], err error) {
	keys, more, err := r.names(ctx, r.name("records"), prefix, after, limit)
	if err != nil {
		return page, err
	}
	const batch = 32 // records of one round trip
	size := 0
	for chunk := range slices.Chunk(keys, batch) {
		if size > pageBytes {
			return page, nil // page.Next was set below
		}
		found, err := r.fetch(ctx, chunk, "record", "n", "v", "m")
		if err != nil {
			return Page[Record]{}, err
		}
		for i, key := range chunk {
			record, err := r.decode(key, found[i])
			if errors.Is(err, ErrNotFound) {
				continue // deleted since
			}
			if err != nil {
				return Page[Record]{}, err
			}
			size += len(record.Value)
			page.Items = append(page.Items, record)
		}
		page.Next = chunk[len(chunk)-1]
	}
	if !more {
		page.Next = ""
	}
	return page, nil
}

// names returns up to limit names of an index and whether there are more.
func (r *Redis) names(ctx context.Context, index, prefix, after string, limit int) ([]string, bool, error) {
	lowest := "[" + prefix
	if after >= prefix && after != "" {
		lowest = "(" + after
	}
	keys, err := r.client.ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: index, ByLex: true, Start: lowest, Stop: "(" + prefix + "\x7f", Count: int64(limit) + 1}).Result()
	if err != nil {
		return nil, false, r.failed(ctx, err)
	}
	if len(keys) > limit {
		return keys[:limit], true, nil
	}
	return keys, false, nil
}

// fetch gets the fields of several hashes in one round trip.
func (r *Redis) fetch(ctx context.Context, keys []string, kind string, fields ...string) ([][]any, error) {
	pipe := r.client.Pipeline()
	replies := make([]*redis.SliceCmd, len(keys))
	for i, key := range keys {
		replies[i] = pipe.HMGet(ctx, r.name(kind, key), fields...)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, r.failed(ctx, err)
	}
	out := make([][]any, len(keys))
	for i, reply := range replies {
		out[i] = reply.Val()
	}
	return out, nil
}
