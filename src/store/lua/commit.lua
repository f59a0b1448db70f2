-- Write a fetched value, if the lease under which it was fetched is still ours and no invalidation came.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 value (JSON)  3 TTL (ms)  4 hash of the value  5 rest of the metadata (JSON)
--       6 how long metadata outlives the value (ms)  7 how long a renewed lease holds (ms)
--       8 channel of changes  9 the change, as announced  10 when the fetch began (ms)
-- Returns the fence's objection (fence.lua)
--       | {'wrongtype'}, lease dropped: the key holds no string by now, so it is not ours to replace (lease.lua)
--       | {'done', now, PEXPIRETIME, 1 if the content is another than before, or than we knew of}
local there = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3])
local before, meta = there[1], there[3] or ''
local objection, now, start = fence(KEYS[2], there[2], ARGV[1], ARGV[7], ARGV[10])
if objection then return objection end
-- MGET finds nothing in a key of another type.
if not before and redis.call('TYPE', KEYS[1]).ok ~= 'none' then
  redis.call('DEL', KEYS[2])
  return {'wrongtype'}
end
-- Somebody else may have written the same meanwhile: to whoever waits for us it is news nevertheless.
local hash, content_since = string.match(meta, '^%d+ %d+ %d+ %d+ ([^ ~@]+)~?%d*@?(%d*)')
local changed = hash ~= ARGV[4] or (before and before ~= ARGV[2])
-- What was made from this entry before its content was content_since was made from another.
if changed or content_since == '' then content_since = string.format('%d', now) end
local pxat = now + tonumber(ARGV[3])
redis.call('SET', KEYS[1], ARGV[2], 'PXAT', string.format('%d', pxat))
if before ~= ARGV[2] then redis.call('PUBLISH', ARGV[8], ARGV[9]) end
redis.call('SET', KEYS[3], string.format('%s %d 0 0 %s@%s %s', start, pxat, ARGV[4], content_since, ARGV[5]),
  'PXAT', string.format('%d', pxat + tonumber(ARGV[6])))
redis.call('DEL', KEYS[2])
return {'done', now, pxat, changed and 1 or 0}
