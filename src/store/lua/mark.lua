#!lua flags=allow-oom
-- Mark the index of a tag: its entries are being sought, or all were found. An absent index stays absent, since anybody
-- may name any tag. A search whose mark was evicted, or replaced by that of a later search, vouches for nothing.
-- KEYS  1 tag (tag.lua)
-- ARGV  1 the mark that must be there; 0: any or none  2 the mark to set (src/store/tags.rs)
-- Returns 1 if it is marked
local before = tonumber(ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if before ~= 0 and tonumber(redis.call('ZSCORE', KEYS[1], '\0') or 0) ~= before then return 0 end
redis.call('ZADD', KEYS[1], ARGV[2], '\0')
return 1
