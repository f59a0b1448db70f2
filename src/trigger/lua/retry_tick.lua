-- Leaves a warmup open whose feed failed: it is claimed again after the wait, for the same tick. If the worker dies
-- before this, the claim runs out and another worker takes the tick.
-- KEYS  1 schedules (sorted set, score = ms)  2 claimed ticks (hash, job to tick)
-- ARGV  1 job  2 the tick that was expanded (ms)  3 the wait (ms)
-- Returns 1 if it is claimed again, or 0 if the schedule started again or another worker finished the tick
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
local at = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('ZADD', KEYS[1], 'XX', string.format('%.0f', at), ARGV[1])
return 1
