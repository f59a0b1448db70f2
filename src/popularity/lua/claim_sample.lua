-- Claim a job's sample if it is due: one worker of the fleet at a time.
-- KEYS  1 the job's samples (hash: last, when the last whole one began; next, when the next is due; every, how far apart; ms)
-- ARGV  1 how long the claim holds (ms)
-- Returns {now, how long until it is due (ms; 0: it is yours), when the last whole one began (ms; -1: never)}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', KEYS[1], 'last', 'next', 'every')
local last, due = tonumber(known[1] or -1) or -1, tonumber(known[2] or 0) or 0
-- A clock that was set back would otherwise keep everybody waiting.
local longest = math.max(tonumber(known[3] or 0) or 0, tonumber(ARGV[1]), 600000)
if due > now and due <= now + longest then return {now, due - now, last} end
redis.call('HSET', KEYS[1], 'next', string.format('%.0f', now + tonumber(ARGV[1])))
return {now, 0, math.min(last, now)}
