-- Remove the value of an entry that its upstream no longer has, or whose input is gone, if the lease is ours and no
-- invalidation came. The metadata then say since when it is gone.
-- fence.lua and meta.lua stand before this.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 the attempt  3 the note (JSON)  4 how long metadata is kept (ms)
--       5 how long a renewed lease holds (ms)  6 channel of changes  7 the change, as announced
--       8 when the fetch began (ms)  9 patience  10 look (meta.lua, judge)
-- Returns the fence's objection (fence.lua)
--       | {'wrongtype'}, lease dropped: the key holds no string by now, so it is not ours to remove (lease.lua)
--       | the objection of judge (meta.lua), lease kept: there is no value that could be gone, and a version of it was
--         announced
--       | {'done', now, -2, 1 if a value went, 0, 0}
local objection, now, fetched_at = fence(KEYS[2], redis.call('GET', KEYS[2]), ARGV[1], ARGV[5], ARGV[8])
if objection then return objection end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' and kind ~= 'none' then
  redis.call('DEL', KEYS[2])
  return {'wrongtype'}
end
local _, _, invalidated, _, hash, _, _, content_since, _, stored, announced, announced_at =
  read_meta(redis.call('MGET', KEYS[3])[1])
if kind == 'none' then
  local refused = judge('', false, stored, announced, announced_at, invalidated, ARGV[9], ARGV[10], now)
  if refused then return refused end
end
local went = redis.call('DEL', KEYS[1])
if went == 1 then redis.call('PUBLISH', ARGV[6], ARGV[7]) end
-- An entry that was made from this one before `content_since` was made from its value.
if went == 1 or hash ~= '-' or (tonumber(content_since) or now + 1) > now then
  content_since = string.format('%d', now)
end
redis.call('SET', KEYS[3],
  write_meta(fetched_at, '0', '0', '0', '-', ARGV[2], fetched_at, content_since, ARGV[3], '', '', ''), 'PX', ARGV[4])
redis.call('DEL', KEYS[2])
return {'done', now, -2, went, 0, 0}
