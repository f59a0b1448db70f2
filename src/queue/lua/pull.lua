-- Lock the next tasks for a worker: from the waiting list into what it has in flight.
-- KEYS  1 active tasks (list)  2 data of tasks (hash)  3 the worker's tasks in flight (set)  4 workers (sorted set)
-- ARGV  1 prefix of metadata keys (same slot)  2 the worker's name  3 at most so many tasks (50 at most)
-- Returns id, payload, id, payload, …; tasks without data are dropped
local ids = redis.call('LPOP', KEYS[1], ARGV[3])
local reply = {}
if not ids then return reply end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[4], time[1], ARGV[2])
for _, id in ipairs(ids) do
  local payload = redis.call('HGET', KEYS[2], id)
  if payload then
    redis.call('SADD', KEYS[3], id)
    redis.call('HSET', ARGV[1] .. id, 'status', 'Running', 'locked_by', ARGV[2], 'locked_at', time[1])
    reply[#reply + 1] = id
    reply[#reply + 1] = payload
  else
    redis.call('DEL', ARGV[1] .. id)
  end
end
return reply
