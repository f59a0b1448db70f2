-- Sends a canary over the channel of signals, and records what a worker has heard.
-- KEYS  1 the records (hash, worker to `since last handled jobs`): the worker has heard everything between the first
--         two times and handled everything before the third (ms), of the jobs that it knows
-- ARGV  1 worker  2 the time since which it hears (ms; 0 if it does not)  3 the last canary that it heard (ms)
--       4 the last canary before which it has handled everything (ms)
--       5 the identities of its jobs, separated by commas
--       6 channel of signals  7 the canary with its nonce; the time is appended
-- Returns now (ms)
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
if ARGV[2] ~= '0' then redis.call('HSET', KEYS[1], ARGV[1], table.concat(ARGV, ' ', 2, 5)) end
redis.call('PUBLISH', ARGV[6], ARGV[7] .. ' ' .. now)
return tonumber(now)
