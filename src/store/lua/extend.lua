-- Let an unchanged value live on, if it is still the one we wrote and no invalidation came. Where nobody was asked, its content
-- stays as old as it was: the metadata keep when somebody last was (hash~asked@content_since), which is what invalidations go by.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 TTL (ms)  3 PEXPIRETIME of the value we wrote  4 rest of the metadata (JSON)
--       5 how long metadata outlives the value (ms)  6 how long a renewed lease holds (ms)
--       7 '1': nobody was asked, so it answers no invalidation that came since, not even one older than the lease
--       8 when the fetch began (ms)
-- Returns the fence's objection (fence.lua)
--       | {'foreign'}, lease kept: the value is gone, somebody else's, or invalidated | {'done', now, PEXPIRETIME, 0}
local there = redis.call('MGET', KEYS[2], KEYS[3])
local meta = there[2] or ''
local objection, now, start = fence(KEYS[2], there[1], ARGV[1], ARGV[6], ARGV[8])
if objection then return objection end
local before, written, mark, hash, asked, content_since =
  string.match(meta, '^(%d+) (%d+) (%d+) %d+ ([^ ~@]+)~?(%d*)(@?%d*) ')
if written ~= ARGV[3] or redis.call('PEXPIRETIME', KEYS[1]) ~= tonumber(ARGV[3])
  or (ARGV[7] == '1' and mark ~= '0') or redis.call('TYPE', KEYS[1]).ok ~= 'string' then
  return {'foreign'}
end
if ARGV[7] == '1' then hash = hash .. '~' .. (asked ~= '' and asked or before) end
local pxat = now + tonumber(ARGV[2])
redis.call('PEXPIREAT', KEYS[1], string.format('%d', pxat))
redis.call('SET', KEYS[3], string.format('%s %d 0 0 %s %s', start, pxat, hash .. content_since, ARGV[4]),
  'PXAT', string.format('%d', pxat + tonumber(ARGV[5])))
redis.call('DEL', KEYS[2])
return {'done', now, pxat, 0}
