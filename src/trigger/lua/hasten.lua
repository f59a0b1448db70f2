-- Brings a job's next warmup forward to now. A warmup that is being expanded may have asked the feed already, so it
-- starts again: its claim no longer holds (hold_tick.lua, end_tick.lua), and its tick is claimed once more. So is the
-- tick of a warmup that waits for a feed that failed.
-- KEYS  1 schedules (sorted set, score = ms)
-- ARGV  1 job
-- Returns 1 if it was brought forward, or 0 if it is due already
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if at and tonumber(at) <= now then return 0 end
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
return 1
