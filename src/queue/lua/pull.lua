-- Locks the next tasks for a worker: moves them from the waiting list to its tasks in flight.
-- KEYS  1 active tasks (list)  2 data of tasks (hash)  3 the worker's tasks in flight (set)  4 workers (sorted set)
-- ARGV  1 prefix of metadata keys (same slot)  2 the worker's name  3 the most tasks to lock (50 at most)
-- Returns id, payload, id, payload, …; tasks without data are dropped
-- Tasks leave the list last: an error because a key has another type comes before anything is taken out.
local ids = redis.call('LRANGE', KEYS[1], 0, ARGV[3] - 1)
local reply = {}
if not ids[1] then return reply end
local time = redis.call('TIME')
local payloads = redis.call('HMGET', KEYS[2], unpack(ids))
redis.call('SCARD', KEYS[3])
redis.call('ZADD', KEYS[4], time[1], ARGV[2])
for n, id in ipairs(ids) do
  if payloads[n] then
    redis.call('SADD', KEYS[3], id)
    redis.call('HSET', ARGV[1] .. id, 'status', 'Running', 'locked_by', ARGV[2], 'locked_at', time[1])
    reply[#reply + 1] = id
    reply[#reply + 1] = payloads[n]
  else
    redis.call('DEL', ARGV[1] .. id)
  end
end
redis.call('LTRIM', KEYS[1], #ids, -1)
return reply
