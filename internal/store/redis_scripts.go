package store

import "github.com/redis/go-redis/v9"

// The scripts of the Redis store. Each runs whole or not at all. They are
// package variables because their texts never change; redis.Script keeps only
// the text and its SHA-1.
var (
	// nextNumber KEYS counter → a number above all earlier ones. The clock is
	// its lower bound, so that it stays above them when the counter is lost.
	nextNumber = redis.NewScript(drawNumber + `
return text`)

	// nextPosition KEYS counter, stream → a number as above, and the last id of
	// the stream.
	nextPosition = redis.NewScript(drawNumber + `
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
return {text, last and last[1] or '0-0'}`)

	// putRecord KEYS record, index ARGV expect, version, value, mac, name → 1,
	// or 0 when the record has another version.
	putRecord = redis.NewScript(`
if (redis.call('HGET', KEYS[1], 'n') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'n', ARGV[2], 'v', ARGV[3], 'm', ARGV[4])
redis.call('ZADD', KEYS[2], 0, ARGV[5])
return 1`)

	// deleteRecord KEYS record, index ARGV expect, name → 1 or 0.
	deleteRecord = redis.NewScript(`
if (redis.call('HGET', KEYS[1], 'n') or '0') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
return 1`)

	// acquireLease KEYS lease, index ARGV owner, value, ttl, mac, name → 1, or 0
	// when another owner holds it.
	acquireLease = redis.NewScript(`
local owner = redis.call('HGET', KEYS[1], 'o')
if owner and owner ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'o', ARGV[1], 'v', ARGV[2], 't', ARGV[3], 'm', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], 0, ARGV[5])
return 1`)

	// renewLeases KEYS leases… ARGV owner → for each 1, or 0 when lost.
	renewLeases = redis.NewScript(`
local kept = {}
for i, key in ipairs(KEYS) do
  local lease = redis.call('HMGET', key, 'o', 't')
  kept[i] = 0
  if lease[1] == ARGV[1] and lease[2] then
    kept[i] = redis.call('PEXPIRE', key, lease[2])
  end
end
return kept`)

	// releaseLeases KEYS index, leases… ARGV owner, names…
	releaseLeases = redis.NewScript(`
for i = 2, #KEYS do
  if redis.call('HGET', KEYS[i], 'o') == ARGV[1] then
    redis.call('DEL', KEYS[i])
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return 1`)

	// forgetLeases KEYS index, leases… ARGV names… removes from the index what
	// has ended.
	forgetLeases = redis.NewScript(`
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then redis.call('ZREM', KEYS[1], ARGV[i-1]) end
end
return 1`)

	// appendEntry KEYS stream ARGV last id, new id, before, payload, mac, length
	// → 1, or 0 when the stream's last id is another one by now.
	appendEntry = redis.NewScript(`
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if (last and last[1] or '0-0') ~= ARGV[1] then return 0 end
redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[6], ARGV[2], 'b', ARGV[3], 'v', ARGV[4], 'm', ARGV[5])
return 1`)
)

const drawNumber = `
local t = redis.call('TIME')
local n = t[1] * 1000000 + t[2]
local drawn = tonumber(redis.call('GET', KEYS[1]) or '0')
if drawn >= n then n = drawn + 1 end
local text = string.format('%.0f', n)
redis.call('SET', KEYS[1], text)
`
