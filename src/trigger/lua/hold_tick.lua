-- Renews the claim on a warmup that takes long. Claims on the same tick differ in the time until which they hold.
-- KEYS  1 schedules (sorted set, score = ms)  2 claimed ticks (hash, job to tick)
-- ARGV  1 job  2 the claimed tick (ms)  3 the time until which the claim holds (ms)
--       4 the time for which it holds from now on (ms)
-- Returns the new time until which it holds, or -1 if the schedule started again or another worker took the tick over
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return -1 end
local till = tonumber(ARGV[3])
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])) ~= till then return -1 end
local time = redis.call('TIME')
till = math.max(till, time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[4]))
redis.call('ZADD', KEYS[1], string.format('%.0f', till), ARGV[1])
return till
