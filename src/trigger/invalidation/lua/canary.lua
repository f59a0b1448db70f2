-- Sends a canary over the channel of signals, and records what a worker has heard.
-- The times of canaries are those of Redis's clock, but they do not go back when the clock is set back: they are ahead
-- of it from then on. So records from before and after compare.
-- KEYS  1 the records: a hash, worker to `since last handled jobs`, then `before began` if it has not checked for a
--         gap before `since`. The worker has heard everything between the first two times and handled everything before
--         the third (ms), of the jobs that it knows. `before` is its last canary before that gap, 0 if it has never
--         checked; `began` is its first canary of all. A worker that heard once, does not hear now, and has no record
--         any more is recorded with zeros. The field `clock` is `high ahead`: Redis's time at the last canary, and by
--         how much the times of canaries are ahead of it
-- ARGV  1 worker  2 the time since which it hears (ms; 0 if it does not)  3 the last canary that it heard (ms)
--       4 the last canary before which it has handled everything (ms)
--       5 the identities of its jobs, separated by commas
--       6 '' if it has checked for a gap before 2; else `before began`, as above; `0 0` if it has heard nothing yet
--       7 channel of signals  8 the canary with its nonce; the time is appended
-- Returns the time of the canary (ms)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local high, ahead = string.match(redis.call('HGET', KEYS[1], 'clock') or '', '^(%d+) (%d+)$')
high, ahead = tonumber(high) or 0, tonumber(ahead) or 0
if now < high then ahead = ahead + high - now + 1 end
redis.call('HSET', KEYS[1], 'clock', string.format('%.0f %.0f', now, ahead))
if ARGV[2] ~= '0' then
  redis.call('HSET', KEYS[1], ARGV[1], table.concat(ARGV, ' ', 2, ARGV[6] == '' and 5 or 6))
elseif ARGV[6] ~= '0 0' then
  redis.call('HSETNX', KEYS[1], ARGV[1], '0 0 0 ' .. ARGV[5] .. ' ' .. ARGV[6])
end
redis.call('PUBLISH', ARGV[7], string.format('%s %.0f', ARGV[8], now + ahead))
return now + ahead
