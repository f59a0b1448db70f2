-- Drops tasks of a dead worker, and the worker itself with its last task. They are not queued again: their entries are
-- on the agenda, so a task that kills its worker does not come back.
-- KEYS  1 workers (sorted set, score = last beat in s)  2 the worker's tasks in flight (set)  3 data of tasks (hash)
-- ARGV  1 prefix of metadata keys (same slot)  2 the worker's name
--       3 seconds without a beat after which a worker is dead  4… ids (200 at most)
-- Returns the number of tasks that the worker has left
for i = 4, #ARGV do
  redis.call('SREM', KEYS[2], ARGV[i])
  redis.call('HDEL', KEYS[3], ARGV[i])
  redis.call('DEL', ARGV[1] .. ARGV[i])
end
local left = redis.call('SCARD', KEYS[2])
local beat = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]) or '0')
local since = redis.call('TIME')[1] - tonumber(ARGV[3])
if left == 0 and beat < since then redis.call('ZREM', KEYS[1], ARGV[2]) end
return left
