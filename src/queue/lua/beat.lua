-- A worker lives; clear up after those that do not. Their tasks are dropped, not queued again: the entries in them are
-- on the agenda and come due when their claims run out, so a task that kills its worker does not come back as such.
-- KEYS  1 workers (sorted set, score = last beat in s)  2 data of tasks (hash)
-- ARGV  1 prefix of metadata keys  2 prefix of in-flight sets (both in the same slot)  3 the worker's name ('' for none)
--       4 dead after so many seconds without a beat  5 '1': the worker takes its leave
-- Returns how many workers live
local now = tonumber(redis.call('TIME')[1])
if ARGV[3] ~= '' then
  if ARGV[5] == '1' then
    redis.call('ZREM', KEYS[1], ARGV[3])
    if redis.call('SCARD', ARGV[2] .. ARGV[3]) > 0 then redis.call('ZADD', KEYS[1], 0, ARGV[3]) end
  else
    redis.call('ZADD', KEYS[1], now, ARGV[3])
  end
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[4]), 'LIMIT', 0, 4)) do
  for _, id in ipairs(redis.call('SPOP', ARGV[2] .. worker, 200)) do
    redis.call('HDEL', KEYS[2], id)
    redis.call('DEL', ARGV[1] .. id)
  end
  if redis.call('SCARD', ARGV[2] .. worker) == 0 then redis.call('ZREM', KEYS[1], worker) end
end
return redis.call('ZCOUNT', KEYS[1], now - tonumber(ARGV[4]), '+inf')
