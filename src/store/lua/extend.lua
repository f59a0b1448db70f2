-- Let an unchanged value live on, if it is still the one we wrote and no invalidation came. Where nobody was asked, its
-- content stays as old as it was: fetched_at stays, which is what invalidations go by. fence.lua and meta.lua stand
-- before this.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 TTL (ms)  3 PEXPIRETIME of the value we wrote  4 the attempt  5 the note (JSON)
--       6 how long metadata outlives the value (ms)  7 how long a renewed lease holds (ms)
--       8 '1': nobody was asked, so it answers no invalidation that came since, not even one older than the lease
--       9 when the fetch began (ms)  10 patience  11 look (meta.lua, judge)
-- Returns the fence's objection (fence.lua)
--       | {'foreign'}, lease kept: the value is gone, somebody else's, or invalidated
--       | the objection to its version (meta.lua, judge), lease kept
--       | {'done', now, PEXPIRETIME, 0, how far it is behind (judge), since when that version was announced}
local there = redis.call('MGET', KEYS[2], KEYS[3])
local objection, now, began = fence(KEYS[2], there[1], ARGV[1], ARGV[7], ARGV[9])
if objection then return objection end
local unasked = ARGV[8] == '1'
local _, own_expiry, invalidated, _, hash, _, fetched_at, content_since, _, version, announced, announced_at =
  read_meta(there[2])
if own_expiry ~= ARGV[3] or redis.call('PEXPIRETIME', KEYS[1]) ~= tonumber(ARGV[3])
  or (unasked and invalidated ~= '0') or redis.call('TYPE', KEYS[1]).ok ~= 'string' then
  return {'foreign'}
end
local refused, behind = judge(
  version, true, version, announced, announced_at, invalidated, ARGV[10], ARGV[11], now)
if refused then return refused end
if behind == 0 then announced, announced_at = '', '' end
local pxat = now + tonumber(ARGV[2])
local expiry = string.format('%d', pxat)
redis.call('PEXPIREAT', KEYS[1], expiry)
redis.call('SET', KEYS[3],
  write_meta(began, expiry, '0', '0', hash, ARGV[4], unasked and fetched_at or began, content_since, ARGV[5],
    version, announced, announced_at),
  'PXAT', string.format('%d', pxat + tonumber(ARGV[6])))
redis.call('DEL', KEYS[2])
return {'done', now, pxat, 0, behind, tonumber(announced_at) or 0}
