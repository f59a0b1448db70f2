-- End a fetch that brought no value: drop the lease if it is ours, and note why. The value stays as it is.
-- lease_record.lua and meta.lua stand before this.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 the attempt  3 the note (JSON; '' leaves the metadata)  4 how long metadata are kept at least (ms)
-- Metadata of another type are written over, as by commit.lua: the failures of an entry must be counted.
-- The open invalidation stays what it is by now: only a doubt, or more than that, whatever it was as the lease began.
-- Returns {'lost'} | {'done', mark}: the mark says what an invalidation asked for meanwhile (src/store/lease.rs)
local known = redis.call('MGET', KEYS[2], KEYS[3])
local token, _, mark = read_lease(known[1])
if token ~= ARGV[1] then return {'lost'} end
redis.call('DEL', KEYS[2])
if ARGV[3] ~= '' then
  local validated_at, own_expiry, invalidated, stale_for, hash, _, fetched_at, content_since, before, version,
    announced, announced_at = read_meta(known[2])
  local doubt = validated_at and is_doubt(before, invalidated) and invalidated or ''
  if not validated_at then
    validated_at, own_expiry, invalidated, stale_for, hash, fetched_at, content_since = '0', '0', '0', '0', '-', '0', ''
    version, announced, announced_at = '', '', ''
  end
  local left = math.max(redis.call('PTTL', KEYS[3]), tonumber(ARGV[4]))
  redis.call('SET', KEYS[3],
    write_meta(validated_at, own_expiry, invalidated, stale_for, hash, ARGV[2], fetched_at, content_since,
      with_doubt(ARGV[3], doubt), version, announced, announced_at),
    'PX', string.format('%.0f', left))
end
return {'done', mark}
