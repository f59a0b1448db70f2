-- Renews the claim on a warmup that takes long, unless the schedule started again or another worker finished the tick.
-- KEYS  1 schedules (sorted set, score = ms)  2 claimed ticks (hash, job to tick)
-- ARGV  1 job  2 the tick that is expanded (ms)  3 the time for which the claim holds from now on (ms)
-- Returns 1 if the claim still holds
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
local till = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('ZADD', KEYS[1], 'XX', 'GT', string.format('%.0f', till), ARGV[1])
return 1
