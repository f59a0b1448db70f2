-- A warmup was expanded: set the next tick, unless the schedule was begun anew meanwhile.
-- KEYS  1 schedules (sorted set)  2 ticks under way (hash)
-- ARGV  1 job  2 the tick that was expanded (ms)  3 the next one (ms; '' for none)
-- Returns 1 if it was set
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
end
return 1
