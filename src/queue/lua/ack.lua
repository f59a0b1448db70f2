-- Acknowledges tasks that are done: deletes all their data.
-- KEYS  1 the worker's tasks in flight (set)  2 data of tasks (hash)
-- ARGV  1 prefix of metadata keys (same slot)  2… ids (500 at most)
-- Returns the number of tasks that had data
local count = 0
for i = 2, #ARGV do
  redis.call('SREM', KEYS[1], ARGV[i])
  redis.call('HDEL', KEYS[2], ARGV[i])
  count = count + redis.call('DEL', ARGV[1] .. ARGV[i])
end
return count
