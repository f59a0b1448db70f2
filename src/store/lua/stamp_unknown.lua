#!lua flags=allow-oom
-- Stamp an unknown tag, one that no entry has, with an invalidation: a fetch in flight may give it to an entry.
-- Above the limit the oldest stamps are dropped; the latest time of these then stands for all tags without a stamp.
-- KEYS  1 stamps of unknown tags (sorted set): member = tag, score as a stamp in tag.lua; the member '' stands for all
--       others
-- ARGV  1 tag  2 time of the invalidation (ms)  3 'r' refresh or 'e' evict  4 the most tags that are kept
-- Returns nothing
local score = -tonumber(ARGV[2])
if ARGV[3] == 'e' then score = score - 0.5 end
redis.call('ZADD', KEYS[1], 'LT', string.format('%.1f', score), ARGV[1])
local spare = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[4]) - 1
if spare <= 0 then return end
-- Includes the stamp for all others, which is older.
local forgotten = redis.call('ZPOPMAX', KEYS[1], spare + 1)
redis.call('ZADD', KEYS[1], string.format('%.0f', math.floor(tonumber(forgotten[#forgotten]) + 0.5)), '')
