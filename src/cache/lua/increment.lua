-- Increments a counter. Only the increment that creates the counter sets its TTL.
-- lease_record.lua stands before this.
-- KEYS  1 counter  2 lease
-- ARGV  1 by how much  2 TTL (ms; '' for none)  3 channel of changes ('' for none)  4 the change, as announced
-- Returns the count as text: a Lua number holds only 53 bits
local created = redis.call('EXISTS', KEYS[1]) == 0
redis.call('INCRBY', KEYS[1], ARGV[1])
if created and ARGV[2] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
local token, fetched_at = read_lease(redis.call('MGET', KEYS[2])[1])
if token then redis.call('SET', KEYS[2], write_lease(token, fetched_at, EVICT), 'KEEPTTL') end
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return redis.call('GET', KEYS[1])
