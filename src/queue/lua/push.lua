-- Puts tasks on the queue, in apalis-redis's layout, straight into the list of active tasks.
-- KEYS  1 active tasks (list)  2 data of tasks (hash)
-- ARGV  1 prefix of metadata keys (same slot)  2 the most tasks that may wait  3 '1': before all others
--       4 channel of signals  5 the signal  6… pairs: id, payload (50 pairs at most)
-- Returns the number of tasks taken; the queue has no room for the rest
local room = tonumber(ARGV[2]) - redis.call('LLEN', KEYS[1])
local taken = 0
for i = 6, #ARGV, 2 do
  if taken >= room then break end
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  redis.call('HSET', ARGV[1] .. ARGV[i], 'attempts', 0, 'max_attempts', 1, 'status', 'Pending')
  if ARGV[3] == '1' then
    redis.call('LPUSH', KEYS[1], ARGV[i])
  else
    redis.call('RPUSH', KEYS[1], ARGV[i])
  end
  taken = taken + 1
end
if taken > 0 then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return taken
