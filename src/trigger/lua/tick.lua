-- Claim a warmup that is due: whoever gets it expands it and then says when the next one is.
-- KEYS  1 schedules (sorted set, score = ms)  2 ticks under way (hash)
-- ARGV  1 how long the claim holds (ms)
-- Returns {now, job, tick}, or {now, '', when the next is due (ms; -1 never)}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if not first[1] then return {now, '', -1} end
if tonumber(first[2]) > now then return {now, '', math.floor(tonumber(first[2]))} end
local tick = tonumber(redis.call('HGET', KEYS[2], first[1]) or first[2])
redis.call('HSET', KEYS[2], first[1], string.format('%.0f', tick))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[1])), first[1])
return {now, first[1], tick}
