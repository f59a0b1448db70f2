#!lua flags=allow-oom
-- Stamp a tag with an invalidation, before its entries are read: whoever puts an entry under it from now on sees the stamp.
-- Not where nothing is kept of the tag: anybody may name any tag, and strays.lua bounds how many of those are remembered.
-- KEYS  1 tag (tag.lua)
-- ARGV  1 time of the invalidation (ms)  2 'r' refresh or 'e' evict
-- Returns 1 if it is stamped
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local score = -tonumber(ARGV[1])
if ARGV[2] == 'e' then score = score - 0.5 end
redis.call('ZADD', KEYS[1], 'LT', string.format('%.1f', score), '')
return 1
