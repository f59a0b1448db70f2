#!lua flags=allow-oom
-- Acquires or renews a worker's leadership, also while Redis is out of memory.
-- KEYS  1 the leader (string with a TTL)
-- ARGV  1 this worker  2 TTL (ms); 0: it gives the leadership up
-- Returns 1 if this worker is the leader
local holder = redis.call('GET', KEYS[1])
if ARGV[2] == '0' then
  if holder == ARGV[1] then redis.call('DEL', KEYS[1]) end
  return 0
end
if holder and holder ~= ARGV[1] then
  -- Shortens a TTL that a clock set back has made too long.
  redis.call('PEXPIRE', KEYS[1], ARGV[2], 'LT')
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
