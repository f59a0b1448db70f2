#!lua flags=allow-oom
-- Note that everything fetched at or before a time is suspect; of two such notes the later time and the stronger doubt count.
-- A time later than now is by another clock, and counts for no more than now: it would swallow all doubts until then.
-- KEYS  1 the note: `time doubt`  2 dealt with: a hash, job to the note (absolve.lua)
-- ARGV  1 time (ms)  2 doubt: '1' invalidations may have been missed, '2' some were lost
--       3 channel of signals  4 the signal to send  5… the jobs that are not in doubt: those of them that were dealt with still are
-- Returns nothing
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local old = redis.call('GET', KEYS[1])
local at, doubt = string.match(old or '0 0', '^(%d+) (%d)$')
at = math.min(math.max(tonumber(at or 0), tonumber(ARGV[1])), now)
doubt = math.max(tonumber(doubt or 0), tonumber(ARGV[2]))
local note = string.format('%.0f %d', at, doubt)
redis.call('SET', KEYS[1], note)
for i = 5, #ARGV do
  if not old or redis.call('HGET', KEYS[2], ARGV[i]) == old then redis.call('HSET', KEYS[2], ARGV[i], note) end
end
redis.call('PUBLISH', ARGV[3], ARGV[4])
