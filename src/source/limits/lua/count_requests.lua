-- Adds up what requests to an upstream took, by the hours of Redis's clock; what is older than the hour before is
-- forgotten.
-- KEYS  1 a hash: `hour`; `requests` and `took` (µs) in it; `requests_before` and `took_before` in the one before it
-- ARGV  1 requests  2 how long they took together (µs)
-- Returns nothing
-- Work: constant
local hour = math.floor(redis.call('TIME')[1] / 3600)
local known = tonumber(redis.call('HGET', KEYS[1], 'hour') or 0)
if known ~= hour then
  local last = known == hour - 1 and redis.call('HMGET', KEYS[1], 'requests', 'took') or {}
  redis.call('HSET', KEYS[1], 'hour', hour, 'requests', 0, 'took', 0,
    'requests_before', last[1] or 0, 'took_before', last[2] or 0)
end
redis.call('HINCRBY', KEYS[1], 'requests', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'took', ARGV[2])
redis.call('EXPIRE', KEYS[1], 7200)
