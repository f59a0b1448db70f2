-- End a fetch that brought no value: drop the lease if it is ours, and note why. The value stays as it is.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 token  2 rest of the metadata (JSON; '' leaves it)  3 how long metadata is kept at least (ms)
-- Returns {'lost'} | {'done', mark}: '-', or what an invalidation asked for meanwhile: 'r' refresh, 'e' evict
local token, start, dirty = string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) (%d+) (%S)$')
if token ~= ARGV[1] then return {'lost'} end
redis.call('DEL', KEYS[2])
if ARGV[2] ~= '' then
  local meta = redis.call('GET', KEYS[3]) or ''
  local head = string.match(meta, '^%d+ %d+ %d+ %d+ %S+') or '0 0 0 0 -'
  local left = math.max(redis.call('PTTL', KEYS[3]), tonumber(ARGV[3]))
  redis.call('SET', KEYS[3], head .. ' ' .. ARGV[2], 'PX', string.format('%.0f', left))
end
return {'done', dirty}
