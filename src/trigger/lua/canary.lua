-- Send a canary over the channel of signals, and note what a worker has heard.
-- KEYS  1 ears: a hash, worker to `since last handled`: it has heard everything between the first two, and handled what came before
--         the third (ms)
-- ARGV  1 worker  2 since when it hears (ms; 0: it does not)  3 the last canary it heard (ms)  4 the last before which it has
--       handled everything (ms)  5 channel of signals  6 the canary, to which the time is added
-- Returns now (ms)
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
if ARGV[2] ~= '0' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. ARGV[4]) end
redis.call('PUBLISH', ARGV[5], ARGV[6] .. ' ' .. now)
return tonumber(now)
