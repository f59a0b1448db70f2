-- Let an old value live beyond its TTL while its source fails or its removal is held back, if it is the one we wrote
-- and was not invalidated.
-- meta.lua stands before this.
-- KEYS  1 value  2 lease (not looked at)  3 meta
-- ARGV  1 how long it must live from now on (ms)  2 by how much it may outlive its TTL (ms)
--       3 how long metadata outlives the value (ms)
--       4 '1': also if it was invalidated in doubt, after a gap
-- Returns {its PEXPIRETIME, when its TTL ends (ms), Redis's now}, or {-2, -2, -2} where there is no such value
local pxat = redis.call('PEXPIRETIME', KEYS[1])
local validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since, note, version,
  announced, announced_at = read_meta(redis.call('MGET', KEYS[3])[1])
if pxat < 0 or not validated_at or tonumber(own_expiry) ~= pxat
  or invalidated ~= '0' and not (ARGV[4] == '1' and is_doubt(note, invalidated))
  or redis.call('TYPE', KEYS[1]).ok ~= 'string' then return {-2, -2, -2} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = pxat - tonumber(stale_for)
local till = math.min(ends + tonumber(ARGV[2]), now + tonumber(ARGV[1]))
if till > pxat then
  own_expiry, stale_for = string.format('%.0f', till), string.format('%.0f', till - ends)
  redis.call('PEXPIREAT', KEYS[1], own_expiry)
  redis.call('SET', KEYS[3],
    write_meta(validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since, note,
      version, announced, announced_at),
    'PXAT', string.format('%.0f', till + tonumber(ARGV[3])))
  pxat = till
end
return {pxat, ends, now}
