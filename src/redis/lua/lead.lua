#!lua flags=allow-oom
-- Be the one worker that does something, or stay it, also while Redis is full.
-- KEYS  1 who does it (string; expires by itself)
-- ARGV  1 this worker  2 for how long (ms)
-- Returns 1 if it is this worker
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  -- Nobody is left it for longer, unless Redis's clock was set back meanwhile.
  redis.call('PEXPIRE', KEYS[1], ARGV[2], 'LT')
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
