-- Writes a value, and marks a fetch or load in flight so that it does not overwrite it. A key that holds no string is
-- foreign: it stays, and Redis's usual error is returned.
-- lease_record.lua stands before this.
-- KEYS  1 value  2 lease
-- ARGV  1 value (JSON)  2 TTL (ms; '' for none)  3 channel of changes ('' for none)  4 the change, as announced
-- Returns 1
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' and kind ~= 'none' then
  return redis.error_reply('WRONGTYPE the key holds a ' .. kind .. ', which is not overwritten')
end
if ARGV[2] == '' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
local token, fetched_at = read_lease(redis.call('MGET', KEYS[2])[1])
if token then redis.call('SET', KEYS[2], write_lease(token, fetched_at, EVICT), 'KEEPTTL') end
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return 1
