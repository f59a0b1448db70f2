#!lua flags=allow-oom
-- Removes a value, and marks a fetch or load in flight so that it writes nothing. It also runs while Redis is out of
-- memory: it frees more than the mark takes. A key that holds no string is foreign: it stays, and counts as missing.
-- lease_record.lua stands before this.
-- KEYS  1 value  2 lease
-- ARGV  1 channel of changes ('' for none)  2 the change, as announced
-- Returns 1 if there was a value
local token, fetched_at = read_lease(redis.call('MGET', KEYS[2])[1])
if token then redis.call('SET', KEYS[2], write_lease(token, fetched_at, EVICT), 'KEEPTTL') end
local removed = redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('UNLINK', KEYS[1]) or 0
if removed == 1 and ARGV[1] ~= '' then redis.call('PUBLISH', ARGV[1], ARGV[2]) end
return removed
