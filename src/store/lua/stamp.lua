#!lua flags=allow-oom
-- Stamp a tag with an invalidation, before its entries are read: a fetch that puts an entry under it later sees the
-- stamp. An absent tag is not stamped: a message may name any tag, and stamp_unknown.lua bounds the number of those
-- that are kept.
-- KEYS  1 tag (tag.lua)
-- ARGV  1 time of the invalidation (ms)  2 'r' refresh or 'e' evict
-- Returns 1 if it is stamped
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local score = -tonumber(ARGV[1])
if ARGV[2] == 'e' then score = score - 0.5 end
-- One from a clock that ran ahead must not hide this one.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local before = tonumber(redis.call('ZSCORE', KEYS[1], '') or 0)
if -before >= now + 1 then
  redis.call('ZADD', KEYS[1], 'XX', string.format('%.1f', -now - (before % 1 == 0 and 0 or 0.5)), '')
end
redis.call('ZADD', KEYS[1], 'LT', string.format('%.1f', score), '')
return 1
