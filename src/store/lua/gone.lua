-- Remove the value of what the upstream no longer has, if the lease is ours and no invalidation came.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 rest of the metadata (JSON)  3 how long metadata is kept (ms)
--       4 how long a renewed lease holds (ms)  5 channel of changes  6 the change, as announced  7 when the fetch began (ms)
-- Returns the fence's objection (fence.lua)
--       | {'wrongtype'}, lease dropped: the key holds no string by now, so it is not ours to remove (lease.lua)
--       | {'done', now, -2, 1 if a value went}
local objection, now, start = fence(KEYS[2], redis.call('GET', KEYS[2]), ARGV[1], ARGV[4], ARGV[7])
if objection then return objection end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' and kind ~= 'none' then
  redis.call('DEL', KEYS[2])
  return {'wrongtype'}
end
local went = redis.call('DEL', KEYS[1])
if went == 1 then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
redis.call('SET', KEYS[3], string.format('%s 0 0 0 - %s', start, ARGV[2]), 'PX', ARGV[3])
redis.call('DEL', KEYS[2])
return {'done', now, -2, went}
