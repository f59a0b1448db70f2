-- Begin to load an absent value, unless it is there meanwhile or somebody loads or fetches it already.
-- A lease that an eviction marked is taken over: whoever holds it will write nothing. Ours is marked '=': no invalidation came,
-- and whoever marks it sees that its holder does not fetch again (invalidate.lua).
-- KEYS  1 value  2 lease
-- ARGV  1 token  2 how long the lease holds (ms)
-- Returns {'there', value} | {'busy'} | {'leased'}
if redis.call('EXISTS', KEYS[1]) == 1 then return {'there', redis.call('GET', KEYS[1])} end
local begun, mark = string.match(redis.call('MGET', KEYS[2])[1] or '', '^%S+ (%d+) (%S)$')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if mark and mark ~= 'e' then
  -- Begun in the future: Redis's clock was set back, and with it the lease's end put off.
  if tonumber(begun) > now then redis.call('PEXPIRE', KEYS[2], ARGV[2], 'LT') end
  return {'busy'}
end
redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. string.format('%.0f', now) .. ' =', 'PX', ARGV[2])
return {'leased'}
