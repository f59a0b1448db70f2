-- Claims a job's sample if it is due: one worker of the fleet at a time.
-- KEYS  1 the job's samples (hash, in ms: last, the start of the last complete one; next, when the next is due; every,
--         their interval)
-- ARGV  1 TTL of the claim (ms)
-- Returns {now, ms until it is due (0: claimed), the start of the last complete one (ms; -1: never)}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', KEYS[1], 'last', 'next', 'every')
local last, due = tonumber(known[1] or -1) or -1, tonumber(known[2] or 0) or 0
-- A clock that was set back would otherwise delay every sample.
local longest = math.max(tonumber(known[3] or 0) or 0, tonumber(ARGV[1]), 600000)
if due > now and due <= now + longest then return {now, due - now, last} end
redis.call('HSET', KEYS[1], 'next', string.format('%.0f', now + tonumber(ARGV[1])))
return {now, 0, math.min(last, now)}
