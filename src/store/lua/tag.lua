-- Put an entry under a tag, before its value is written; some dead entries are dropped.
-- KEYS  1 tag: a sorted set, member = entry, score = until when its value may live (ms); the member '' is the stamp:
--         minus the time of the last invalidation by this tag (ms), less a half where it was an eviction; the member
--         '\0' says that all is there, see src/store/tags.rs
-- ARGV  1 entry  2 for how long its value may live (ms)  3 dead entries dropped at most
-- Returns the stamp's score, or '0' where there is none
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '0', string.format('%.0f', now), 'LIMIT', 0, ARGV[3])
if dead[1] then redis.call('ZREM', KEYS[1], unpack(dead)) end
redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
local stamp = redis.call('ZSCORE', KEYS[1], '') or '0'
if -tonumber(stamp) >= now + 1 then
  -- From a clock that ran ahead. It fences fetches under way, and none that begins from now on.
  stamp = string.format('%.1f', -now - (tonumber(stamp) % 1 == 0 and 0 or 0.5))
  redis.call('ZADD', KEYS[1], 'XX', stamp, '')
end
return stamp
