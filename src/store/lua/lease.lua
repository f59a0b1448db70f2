-- Begin to fetch an entry, unless somebody does already or nothing is to be done.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 how long the lease holds (ms)
--       3 fresh if our value was fetched at or after this (ms; -1: does not matter)
--       4 fresh if our value lives at least until this (ms; -1: does not matter)
--       5 '1': any value that was not invalidated is fresh, whoever wrote it
--       6 '1': where there is no value, there is nothing to do
--       7 a fetch for an invalidation that follows another one within this (ms) holds off a third: see invalidate.lua
--       8 not where so many workers in a row or more have died while they fetched it (-1: whatever it did)
-- Returns {'busy', ms left} | {'fresh', now, PEXPIRETIME, meta} | {'leased', now = start, PEXPIRETIME, meta} | {'absent'}
--       | {'deadly'}
--       | {'wrongtype', 0, -2, type}: the key holds no string, so it is no value of ours to replace; not asked of what lives
--         exactly as long as we gave it
local known = redis.call('MGET', KEYS[2], KEYS[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if known[1] then
  -- Begun in the future: Redis's clock was set back, and with it the lease's end put off.
  local begun = string.match(known[1], '^%S+ (%d+) ')
  if begun and tonumber(begun) > now then redis.call('PEXPIRE', KEYS[2], ARGV[2], 'LT') end
  return {'busy', redis.call('PTTL', KEYS[2])}
end
local pxat = redis.call('PEXPIRETIME', KEYS[1])
local meta = known[2] or ''
local start, written, invalid, old = string.match(meta, '^(%d+) (%d+) (%d+) (%d+) ')
local ours = tonumber(written) == pxat
if pxat == -2 then
  if ARGV[6] == '1' then return {'absent'} end
elseif not ours then
  local kind = redis.call('TYPE', KEYS[1]).ok
  if kind ~= 'string' then return {'wrongtype', 0, -2, kind} end
end
if pxat ~= -2 and (invalid or '0') == '0' then
  -- What outlives its TTL is not fresh; neither is what was fetched in the future, by a clock that ran ahead.
  ours = ours and old == '0' and tonumber(start) <= now
  local since, till = tonumber(ARGV[3]), tonumber(ARGV[4])
  if ARGV[5] == '1'
    or (ours and since >= 0 and tonumber(start) >= since)
    or (ours and till >= 0 and pxat >= till) then
    return {'fresh', now, pxat, meta}
  end
end
if ARGV[8] ~= '-1' and tonumber(string.match(meta, '"d":(%d+)') or 0) >= tonumber(ARGV[8]) then return {'deadly'} end
-- Marked '+' is a fetch that follows another, which was made for an invalidation (1) or as a second look after one (5).
local again = start and (tonumber(start) > now - tonumber(ARGV[7]) or invalid ~= '0')
  and string.find(meta, '"t":[15]')
local mark = again and ' +' or ' -'
redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. string.format('%d', now) .. mark, 'PX', ARGV[2])
return {'leased', now, pxat, meta}
