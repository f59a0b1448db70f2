-- Sets a job's next tick after a warmup was expanded, if the claim on the tick still holds.
-- KEYS  1 schedules (sorted set, score = ms)  2 claimed ticks (hash, job to tick)
-- ARGV  1 job  2 the claimed tick (ms)  3 the time until which the claim holds (ms)  4 the next tick (ms; '' for none)
-- Returns 1 if it was set, or 0 if the schedule started again or another worker took the tick over
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])) ~= tonumber(ARGV[3]) then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if ARGV[4] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[4], ARGV[1])
end
return 1
