-- A worker lives; find those that do not.
-- KEYS  1 workers (sorted set, score = last beat in s)
-- ARGV  1 prefix of in-flight sets (same slot)  2 the worker's name ('' for none)
--       3 dead after so many seconds without a beat  4 '1': the worker takes its leave
-- Returns how many workers live, then the names of dead ones (100 at most). Who leaves with tasks in hand counts as dead at once.
local now = tonumber(redis.call('TIME')[1])
if ARGV[2] ~= '' then
  if ARGV[4] == '1' then
    redis.call('ZREM', KEYS[1], ARGV[2])
    if redis.call('SCARD', ARGV[1] .. ARGV[2]) > 0 then redis.call('ZADD', KEYS[1], 0, ARGV[2]) end
  else
    redis.call('ZADD', KEYS[1], now, ARGV[2])
  end
end
-- A beat of the future is one from before Redis's clock was set back.
for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (now + 1), '+inf', 'LIMIT', 0, 100)) do
  redis.call('ZADD', KEYS[1], now, ahead)
end
local since = now - tonumber(ARGV[3])
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. since, 'LIMIT', 0, 100)
return {tostring(redis.call('ZCOUNT', KEYS[1], since, '+inf')), unpack(dead)}
