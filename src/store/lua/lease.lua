-- Begin to fetch an entry, unless somebody does already or nothing is to be done.
-- The record and its marks: src/store/lease.rs. lease_record.lua and meta.lua stand before this.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 how long the lease holds (ms)
--       3 fresh if our value was fetched at or after this (ms; -1: does not matter)
--       4 fresh if our value lives at least until this (ms; -1: does not matter)
--       5 '1': any value that was not invalidated is fresh, no matter who wrote it
--       6 '1': where there is no value, there is nothing to do
--       7 a fetch for an invalidation that follows another one within this (ms) holds off a third: see invalidate.lua
--       8 not where so many workers in a row or more have died while they fetched it (-1: does not matter)
-- Returns {'busy', ms left} | {'fresh', now, PEXPIRETIME, meta}
--       | {'leased', now = fetched_at, PEXPIRETIME, meta} | {'absent'} | {'poison'}
--       | {'wrongtype', 0, -2, type}: the key holds no string, so it is no value of ours to replace; not asked of a
--         value with the expiry that we gave it
local known = redis.call('MGET', KEYS[2], KEYS[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if known[1] then
  -- Begun in the future: Redis's clock was set back, and with it the lease's end put off.
  local _, fetched_at = read_lease(known[1])
  if fetched_at and tonumber(fetched_at) > now then redis.call('PEXPIRE', KEYS[2], ARGV[2], 'LT') end
  return {'busy', redis.call('PTTL', KEYS[2])}
end
local pxat = redis.call('PEXPIRETIME', KEYS[1])
local meta = known[2] or ''
local validated_at, own_expiry, invalidated, stale_for, _, attempt, _, _, note = read_meta(meta)
local ours = tonumber(own_expiry) == pxat
if pxat == -2 then
  if ARGV[6] == '1' then return {'absent'} end
elseif not ours then
  local kind = redis.call('TYPE', KEYS[1]).ok
  if kind ~= 'string' then return {'wrongtype', 0, -2, kind} end
end
if pxat ~= -2 and (invalidated or '0') == '0' then
  -- A value that outlives its TTL is not fresh; neither is one of the future, by a clock that ran ahead.
  ours = ours and stale_for == '0' and tonumber(validated_at) <= now
  local since, till = tonumber(ARGV[3]), tonumber(ARGV[4])
  if ARGV[5] == '1'
    or (ours and since >= 0 and tonumber(validated_at) >= since)
    or (ours and till >= 0 and pxat >= till) then
    return {'fresh', now, pxat, meta}
  end
end
local trigger, crashes = 0, 0
if validated_at then trigger, crashes = read_attempt(attempt, note) end
if ARGV[8] ~= '-1' and crashes >= tonumber(ARGV[8]) then return {'poison'} end
-- A fetch that follows another, which was made for an invalidation (1).
local again = validated_at and trigger == 1
  and (tonumber(validated_at) > now - tonumber(ARGV[7]) or invalidated ~= '0')
redis.call('SET', KEYS[2], write_lease(ARGV[1], string.format('%d', now), again and AGAIN or FIRST), 'PX', ARGV[2])
return {'leased', now, pxat, meta}
