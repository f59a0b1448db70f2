-- Schedules a job; at once if its file is new or changed, or if Redis was restarted; else leaves its tick as it is.
-- Of workers that find the same change, only the first starts the warmup.
-- KEYS  1 schedules (sorted set, score = ms)  2 claimed ticks (hash, job to tick)  3 digests of job files (hash)
-- ARGV  1 job  2 digest and the server's run id  3 the next tick (ms; '' for a job without a schedule)
--       4 the time for which a claim holds (ms)
--       5 the refetch that is not complete (ms; '' for none): a warmup that starts at once has this tick
-- Returns 1 if the job is warmed up at once
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then
  redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
  redis.call('HDEL', KEYS[2], ARGV[1], ARGV[1] .. '/state')
  redis.call('ZADD', KEYS[1], string.format('%.0f', math.min(now, tonumber(ARGV[5]) or now)), ARGV[1])
  return 1
end
-- A tick later than the next one was set by a clock that ran ahead, unless a claim or a feed's retry set it.
if ARGV[3] ~= '' then
  local latest = tonumber(ARGV[3])
  if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then latest = math.max(latest, now + tonumber(ARGV[4])) end
  redis.call('ZADD', KEYS[1], 'LT', string.format('%.0f', latest), ARGV[1])
end
return 0
