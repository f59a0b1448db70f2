-- Sets a job's next tick after a warmup was expanded, if the claim on the tick still holds.
-- KEYS  1 schedules (sorted set, score = ms)  2 claimed ticks (hash, job to tick)
-- ARGV  1 job  2 the claimed tick (ms)  3 the time until which the claim holds (ms)  4 the next tick (ms; '' for none)
-- If hasten.lua asked for another warmup meanwhile, the next tick is now at the latest.
-- Returns 1 if it was set, or 0 if the schedule started again or another worker took the tick over
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])) ~= tonumber(ARGV[3]) then return 0 end
local state = ARGV[1] .. '/state'
local next = tonumber(ARGV[4])
if redis.call('HGET', KEYS[2], state) == 'again' then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  next = math.min(next or now, now)
end
redis.call('HDEL', KEYS[2], ARGV[1], state)
if next then
  redis.call('ZADD', KEYS[1], string.format('%.0f', next), ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return 1
