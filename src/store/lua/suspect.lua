#!lua flags=allow-oom
-- Note a gap: everything fetched at or before a time is suspect. Of two notes the later time and the stronger doubt
-- count. A time later than now is by another clock, and counts as now. clock.lua leaves a note of such a time when the
-- clock was set back; each new gap makes it another note, since it would count as dealt with. That holds as long as the
-- note has `from`, also when the clock has passed the note's time.
-- KEYS  1 the note: `time doubt`, or `time doubt from`: of what was fetched after `from`, invalidations were lost
--       (clock.lua)
--       2 dealt with: a hash, job to the note (src/worker/maintenance/lua/close_gap.lua); `spared JOB` as well if the
--         job was only not in doubt: then it is not dealt with for a later gap, although the note may stay the same
-- ARGV  1 time (ms)  2 doubt: '1' invalidations may have been missed, '2' some were lost
--       3 channel of signals  4 the signal to send  5… the jobs that are not in doubt: those of them that were
--       dealt with still are
-- Returns nothing
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local old = redis.call('GET', KEYS[1])
local before, doubt, from = string.match(old or '0 0', '^(%d+) (%d)( ?%d*)$')
before = tonumber(before or 0)
local asked = math.min(tonumber(ARGV[1]), now)
-- What is older than the step was dealt with after it.
local anew = asked > (tonumber(from) or 0) and (before > now or (tonumber(from) and asked <= before))
local at = anew and before + 1 or math.max(before, asked)
doubt = math.max(tonumber(doubt or 0), tonumber(ARGV[2]))
local note = string.format('%.0f %d', at, doubt) .. (from or '')
redis.call('SET', KEYS[1], note)
local spared = {}
for i = 5, #ARGV do
  spared[ARGV[i]] = true
  if not old then
    redis.call('HSET', KEYS[2], ARGV[i], note, 'spared ' .. ARGV[i], note)
  elseif redis.call('HGET', KEYS[2], ARGV[i]) == old then
    redis.call('HSET', KEYS[2], ARGV[i], note)
    -- It was dealt with up to the old note only.
    if note ~= old then redis.call('HSET', KEYS[2], 'spared ' .. ARGV[i], note) end
  end
end
if old then
  for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
    local job = string.match(field, '^spared (.*)$')
    if job and not spared[job] then redis.call('HDEL', KEYS[2], field, job) end
  end
end
redis.call('PUBLISH', ARGV[3], ARGV[4])
