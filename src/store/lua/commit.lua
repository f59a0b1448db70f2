-- Write a fetched value, if the lease under which it was fetched is still ours and no invalidation came.
-- fence.lua and meta.lua stand before this.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 value (JSON)  3 TTL (ms)  4 hash of the value  5 the attempt  6 the note (JSON)
--       7 how long metadata outlives the value (ms)  8 how long a renewed lease holds (ms)
--       9 channel of changes  10 the change, as announced  11 when the fetch began (ms)
--       12 the value's version ('' for none)  13 patience  14 look (meta.lua, judge)
-- Returns the fence's objection (fence.lua)
--       | {'wrongtype'}, lease dropped: the key holds no string by now, so it is not ours to replace (lease.lua)
--       | the objection to its version (meta.lua, judge), lease kept
--       | {'done', now, PEXPIRETIME, 1 if the content is another than before, or than we knew of,
--         how far it is behind (judge), since when that version was announced}
local there = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3])
local before = there[1]
local objection, now, fetched_at = fence(KEYS[2], there[2], ARGV[1], ARGV[8], ARGV[11])
if objection then return objection end
-- MGET finds nothing in a key of another type.
if not before and redis.call('TYPE', KEYS[1]).ok ~= 'none' then
  redis.call('DEL', KEYS[2])
  return {'wrongtype'}
end
-- Somebody else may have written the same meanwhile: those who wait for us hear of it all the same.
local _, _, invalidated, _, hash, _, _, content_since, _, stored, announced, announced_at = read_meta(there[3])
local refused, behind = judge(
  ARGV[12], before, stored, announced, announced_at, invalidated, ARGV[13], ARGV[14], now)
if refused then return refused end
if behind == 0 then announced, announced_at = '', '' end
local changed = hash ~= ARGV[4] or (before and before ~= ARGV[2])
-- An entry that was made from this one before `content_since` was made from other content.
if changed or content_since == '' then content_since = string.format('%d', now) end
local pxat = now + tonumber(ARGV[3])
local expiry = string.format('%d', pxat)
redis.call('SET', KEYS[1], ARGV[2], 'PXAT', expiry)
if before ~= ARGV[2] then redis.call('PUBLISH', ARGV[9], ARGV[10]) end
redis.call('SET', KEYS[3],
  write_meta(fetched_at, expiry, behind == 1 and invalidated or '0', '0', ARGV[4], ARGV[5], fetched_at, content_since,
    ARGV[6], ARGV[12], announced, announced_at),
  'PXAT', string.format('%d', pxat + tonumber(ARGV[7])))
redis.call('DEL', KEYS[2])
return {'done', now, pxat, changed and 1 or 0, behind, tonumber(announced_at) or 0}
