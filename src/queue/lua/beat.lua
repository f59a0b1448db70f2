-- Notes a beat of a worker, and finds dead workers.
-- KEYS  1 workers (sorted set, score = last beat in s)
-- ARGV  1 prefix of in-flight sets (same slot)  2 the worker's name ('' for none)
--       3 seconds without a beat after which a worker is dead  4 '1': the worker leaves the fleet
-- Returns the number of live workers, then the names of dead ones (100 at most).
-- A worker that leaves with tasks in flight counts as dead at once.
local now = tonumber(redis.call('TIME')[1])
if ARGV[2] ~= '' then
  if ARGV[4] == '1' then
    redis.call('ZREM', KEYS[1], ARGV[2])
    if redis.call('SCARD', ARGV[1] .. ARGV[2]) > 0 then redis.call('ZADD', KEYS[1], 0, ARGV[2]) end
  else
    redis.call('ZADD', KEYS[1], now, ARGV[2])
  end
end
-- A beat in the future is older than a step back of Redis's clock.
for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (now + 1), '+inf', 'LIMIT', 0, 100)) do
  redis.call('ZADD', KEYS[1], now, ahead)
end
local since = now - tonumber(ARGV[3])
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. since, 'LIMIT', 0, 100)
return {tostring(redis.call('ZCOUNT', KEYS[1], since, '+inf')), unpack(dead)}
