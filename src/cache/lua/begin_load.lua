-- Acquires the lease of a missing value, unless the value has appeared or another process holds the lease. A lease that
-- an eviction marked is taken over: its holder will write nothing. The marks: src/store/lease.rs.
-- lease_record.lua stands before this.
-- KEYS  1 value  2 lease
-- ARGV  1 token  2 TTL of the lease (ms)
-- Returns {'there', value} | {'busy'} | {'leased'}
if redis.call('EXISTS', KEYS[1]) == 1 then return {'there', redis.call('GET', KEYS[1])} end
local _, fetched_at, mark = read_lease(redis.call('MGET', KEYS[2])[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if mark and mark ~= EVICT then
  -- Acquired in the future: Redis's clock was set back, so the lease would end too late.
  if tonumber(fetched_at) > now then redis.call('PEXPIRE', KEYS[2], ARGV[2], 'LT') end
  return {'busy'}
end
redis.call('SET', KEYS[2], write_lease(ARGV[1], string.format('%.0f', now), LOAD), 'PX', ARGV[2])
return {'leased'}
