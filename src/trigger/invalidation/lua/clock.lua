#!lua flags=allow-oom
-- Checks whether Redis's clock was set back, and notes a gap if it was: times from before and after do not compare.
-- Everything fetched up to the latest time that any worker saw may be older than an invalidation that was handled
-- since. What was fetched at a time that the clock shows twice counts as lost. Of workers that notice the same,
-- the first notes the gap. If a gap is open, its note becomes another one: jobs may be done with it.
-- KEYS  1 the gap (suspect.lua)
--       2 the clock (hash): high, the latest time that any worker saw since the clock was last set back (ms);
--         set_back, how often it was set back
-- ARGV  1 set_back at the caller's last reading ('' if there is none)
--       2 the time of that reading (ms)  3 the least time since, less the allowed drift (ms)  4 the most (ms)
--       5 channel of signals  6 the signal to send for a gap
-- Returns {now (ms), set_back}
-- Work: constant.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', KEYS[2], 'high', 'set_back')
local high, count = tonumber(known[1]) or 0, tonumber(known[2]) or 0
local last, least, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
-- If the counts differ, another worker has noted what happened meanwhile.
local compares = tonumber(ARGV[1]) == count
local back = now < high or (compares and now < last + least)
if not back then
  if now > high then redis.call('HSET', KEYS[2], 'high', string.format('%.0f', now)) end
  return {now, count}
end
local at, from = high, 0
if compares then at, from = math.max(high, last + most), math.max(now - most - 1, 0) end
local noted, kind, since = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d) ?(%d*)$')
at = math.max(at, (tonumber(noted) or -1) + 1)
kind = math.max(tonumber(kind) or 0, from == 0 and 2 or 1)
since = math.min(from, tonumber(since) or from)
redis.call('SET', KEYS[1], string.format('%.0f %d %.0f', at, kind, since))
redis.call('HSET', KEYS[2], 'high', string.format('%.0f', now), 'set_back', count + 1)
redis.call('PUBLISH', ARGV[5], ARGV[6])
return {now, count + 1}
