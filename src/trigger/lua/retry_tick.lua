-- Leaves a warmup open whose feed failed: it is claimed again after the wait, for the same tick. If the worker dies
-- before this, the claim runs out and another worker takes the tick.
-- KEYS  1 schedules (sorted set, score = ms)  2 claimed ticks (hash, job to tick)
-- ARGV  1 job  2 the claimed tick (ms)  3 the time until which the claim holds (ms)  4 the wait (ms)
-- Returns 1 if it is claimed again, or 0 if the schedule started again or another worker took the tick over
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])) ~= tonumber(ARGV[3]) then return 0 end
local time = redis.call('TIME')
local at = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[4])
redis.call('ZADD', KEYS[1], string.format('%.0f', at), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1] .. '/state', 'waits')
return 1
