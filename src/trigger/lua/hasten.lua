-- Brings a job's next warmup forward to now. A warmup that is being expanded may have asked the feed already: it goes
-- on, so that its answer is not lost, and the next one begins when it ends (end_tick.lua). A warmup that waits for a
-- feed that failed is claimed again now; the failures stay counted, so the next wait is longer.
-- KEYS  1 schedules (sorted set, score = ms)  2 claimed ticks (hash, job to tick; `JOB/state` is `waits` while the tick
--         waits for its feed, or `again` if another warmup follows)
-- ARGV  1 job
-- Returns 1 if it was brought forward, 2 if it follows the warmup that is being expanded, or 0 if it is due already
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if at and tonumber(at) <= now then return 0 end
local state = ARGV[1] .. '/state'
if at and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 and redis.call('HGET', KEYS[2], state) ~= 'waits' then
  redis.call('HSET', KEYS[2], state, 'again')
  return 2
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
return 1
