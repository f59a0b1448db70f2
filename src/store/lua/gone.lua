-- Remove the value of what the upstream no longer has, if the lease is ours and no invalidation came.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 rest of the metadata (JSON)  3 how long metadata is kept (ms)
--       4 how long a renewed lease holds (ms)  5 channel of changes  6 the change, as announced
-- Returns {'lost'} | {'evicted'}, lease dropped | {'again', now}, lease renewed | {'done', now, -2, 1 if a value went}
local token, start, dirty = string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) (%d+) (%S)$')
if token ~= ARGV[1] then return {'lost'} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if dirty == 'e' then
  redis.call('DEL', KEYS[2])
  return {'evicted'}
elseif dirty == 'r' then
  redis.call('SET', KEYS[2], token .. ' ' .. string.format('%.0f', now) .. ' -', 'PX', ARGV[4])
  return {'again', now}
end
local went = redis.call('DEL', KEYS[1])
if went == 1 then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
redis.call('SET', KEYS[3], string.format('%s 0 0 - %s', start, ARGV[2]), 'PX', ARGV[3])
redis.call('DEL', KEYS[2])
return {'done', now, -2, went}
