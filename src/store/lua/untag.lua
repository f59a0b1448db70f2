-- Take an entry away from a tag, unless it was put there anew by a later fetch.
-- KEYS  1 tag (tag.lua)
-- ARGV  1 entry  2 until when its value would live if it was put there before (ms)
-- Returns 1 if it was taken away
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) > tonumber(ARGV[2]) then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])
