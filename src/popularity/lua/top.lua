-- Returns the most read entries of a job (after the prelude half_lives.lua).
-- KEYS  1 counts (sorted set)  2 clock (hash)
-- ARGV  1 half-life (ms)  2 the first rank (0 is the most read)  3 how many (1,000 at most)
-- Returns pairs: entry, decayed count as of now, the most read first
local time = redis.call('TIME')
local tick = passed(KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[1]))
local most = math.min(tonumber(ARGV[3]), 1000)
if most < 1 then return {} end
local found = redis.call('ZRANGE', KEYS[1], ARGV[2], tonumber(ARGV[2]) + most - 1, 'REV', 'WITHSCORES')
for i = 2, #found, 2 do found[i] = string.format('%.17g', 2 ^ math.min(tonumber(found[i]) - tick, 1000)) end
return found
