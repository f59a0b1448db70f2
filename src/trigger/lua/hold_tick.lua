-- Keep the claim on a warmup that takes long, unless the schedule was begun anew or somebody else has finished it.
-- KEYS  1 schedules (sorted set)  2 ticks under way (hash)
-- ARGV  1 job  2 the tick that is expanded (ms)  3 how long the claim holds from now on (ms)
-- Returns 1 if it is ours still
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
local till = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('ZADD', KEYS[1], 'XX', 'GT', string.format('%.0f', till), ARGV[1])
return 1
