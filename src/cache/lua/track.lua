-- Tracks a value that a service loads, for workers: they do not know its tags, so an invalidation by any tag affects it
-- (src/store/loaded.rs). Removes some expired members.
-- KEYS  1 loaded values (sorted set, member = key, score = end of its life, ms); absent if no worker asks
-- ARGV  1 key  2 its longest life from now on (ms)  3 expired members to remove (at most 1,000)
-- Returns 1 if the value is tracked
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '0', string.format('%.0f', now), 'LIMIT', 0, ARGV[3])
if dead[1] then redis.call('ZREM', KEYS[1], unpack(dead)) end
redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
return 1
