#!lua flags=allow-oom
-- See whether Redis's clock was set back, and note what is doubtful since: times from before and after do not compare.
-- All that was fetched up to the latest time that anybody saw may be older than an invalidation that was handled since. What
-- was fetched by the clock of before at a time that its present one has shown as well, or is yet to show, certainly may be.
-- Of workers that notice the same, the first notes it.
-- KEYS  1 the note of what is suspect (suspect.lua)
--       2 the clock (hash): high, the latest time that any worker saw since the clock was last set back (ms); set_back, how
--         often it was
-- ARGV  1 how often it was set back when the caller last looked ('': it never did)
--       2 when that was (ms)  3 how long ago that is at least, less what clocks may drift (ms)  4 at most (ms)
--       5 channel of signals  6 the signal to send where something is suspect
-- Returns {now (ms), how often it was set back}
-- Work: constant.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', KEYS[2], 'high', 'set_back')
local high, count = tonumber(known[1]) or 0, tonumber(known[2]) or 0
local last, least, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
-- Else somebody has noted what happened meanwhile.
local compares = tonumber(ARGV[1]) == count
local back = now < high or (compares and now < last + least)
if not back then
  if now > high then redis.call('HSET', KEYS[2], 'high', string.format('%.0f', now)) end
  return {now, count}
end
local at, from = high, 0
if compares then at, from = math.max(high, last + most), math.max(now - most - 1, 0) end
local noted, doubt, since = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d) ?(%d*)$')
at = math.max(at, tonumber(noted) or 0)
doubt = math.max(tonumber(doubt) or 0, from == 0 and 2 or 1)
since = math.min(from, tonumber(since) or from)
redis.call('SET', KEYS[1], string.format('%.0f %d', at, doubt) .. (since > 0 and string.format(' %.0f', since) or ''))
redis.call('HSET', KEYS[2], 'high', string.format('%.0f', now), 'set_back', count + 1)
redis.call('PUBLISH', ARGV[5], ARGV[6])
return {now, count + 1}
