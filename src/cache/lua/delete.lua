#!lua flags=allow-oom
-- Remove a value. What is being fetched or loaded for this key was begun before, and is not to bring it back.
-- A full Redis does it, too: what goes is more than the mark that is written.
-- A key that holds no string is somebody else's: it stays, and there was no value.
-- lease_record.lua stands before this.
-- KEYS  1 value  2 lease
-- ARGV  1 channel of changes ('' says nothing)  2 the change, as announced
-- Returns 1 if there was a value
local token, fetched_at = read_lease(redis.call('MGET', KEYS[2])[1])
if token then redis.call('SET', KEYS[2], write_lease(token, fetched_at, EVICT), 'KEEPTTL') end
local removed = redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('UNLINK', KEYS[1]) or 0
if removed == 1 and ARGV[1] ~= '' then redis.call('PUBLISH', ARGV[1], ARGV[2]) end
return removed
