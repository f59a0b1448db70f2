#!lua flags=allow-oom
-- Stamp a tag that no entry has with an invalidation: a fetch may be under way that gives it to one.
-- Of too many, the oldest are forgotten; the latest time of these then stands for all tags that are not there.
-- KEYS  1 stamps of strays (sorted set): member = tag, score as a stamp in tag.lua; the member '' stands for all others
-- ARGV  1 tag  2 time of the invalidation (ms)  3 'r' refresh or 'e' evict  4 tags remembered at most
-- Returns nothing
local score = -tonumber(ARGV[2])
if ARGV[3] == 'e' then score = score - 0.5 end
redis.call('ZADD', KEYS[1], 'LT', string.format('%.1f', score), ARGV[1])
local spare = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[4]) - 1
if spare <= 0 then return end
-- With the one for all others, which is older than they are.
local forgotten = redis.call('ZPOPMAX', KEYS[1], spare + 1)
redis.call('ZADD', KEYS[1], string.format('%.0f', math.floor(tonumber(forgotten[#forgotten]) + 0.5)), '')
