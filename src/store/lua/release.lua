-- End a fetch that brought no value: drop the lease if it is ours, and note why. The value stays as it is.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 rest of the metadata (JSON; '' leaves it)  3 how long metadata is kept at least (ms)
-- Metadata of another type are written over, as by commit.lua: the failures of an entry must be counted.
-- Returns {'lost'} | {'done', mark}: '-', or what an invalidation asked for meanwhile: 'r' refresh, 'e' evict
local known = redis.call('MGET', KEYS[2], KEYS[3])
local token, start, dirty = string.match(known[1] or '', '^(%S+) (%d+) (%S)$')
if token ~= ARGV[1] then return {'lost'} end
redis.call('DEL', KEYS[2])
if ARGV[2] ~= '' then
  local meta = known[2] or ''
  local head = string.match(meta, '^%d+ %d+ %d+ %d+ %S+') or '0 0 0 0 -'
  local left = math.max(redis.call('PTTL', KEYS[3]), tonumber(ARGV[3]))
  redis.call('SET', KEYS[3], head .. ' ' .. ARGV[2], 'PX', string.format('%.0f', left))
end
return {'done', dirty}
