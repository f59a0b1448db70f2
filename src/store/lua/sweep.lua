-- Drop the dead parts of a tag: entries whose value is long gone, and a stamp that is older than any fetch.
-- KEYS  1 tag (tag.lua)
-- ARGV  1 entries dropped at most  2 how long a stamp is kept (ms)
-- Returns how many were dropped; as many as were allowed: there may be more
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '0', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
if dead[1] then redis.call('ZREM', KEYS[1], unpack(dead)) end
local stamp = redis.call('ZSCORE', KEYS[1], '')
if stamp and now + tonumber(stamp) > tonumber(ARGV[2]) then redis.call('ZREM', KEYS[1], '') end
-- A mark alone says nothing.
if redis.call('ZCARD', KEYS[1]) == 1 then redis.call('ZREM', KEYS[1], '\0') end
return #dead
