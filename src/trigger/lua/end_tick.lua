-- Sets a job's next tick after a warmup was expanded, unless its schedule started again meanwhile.
-- KEYS  1 schedules (sorted set, score = ms)  2 claimed ticks (hash, job to tick)
-- ARGV  1 job  2 the tick that was expanded (ms)  3 the next tick (ms; '' for none)
-- Returns 1 if it was set
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
end
return 1
