#!lua flags=allow-oom
-- Handle an invalidation of one entry: what was fetched at or before its time S is refused, removed or made due.
-- What was fetched after S is left alone, so that handling twice, late, or by every worker does no harm.
-- A full Redis does it, too: it may write a mark, and what an eviction frees is more.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 S (ms)  2 'r' refresh or 'e' evict  3 how long the note on a value without a TTL is kept (ms)
--       4 channel of changes  5 the change, as announced
-- Returns {1 if a fetch in flight was fenced,
--          1 if the entry is to be fetched anew and nobody does yet; 2 if nothing is known of it,
--          1 if a value was removed}
local S = tonumber(ARGV[1])
local fenced, due, removed = 0, 0, 0
local token, begun, marked = string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) (%d+) (%S)$')
local later = token and tonumber(begun) > S
-- An eviction is told once, and not by each worker that hears it: what was asked for since would leave the agenda.
if token and not later and not (marked == 'e' and ARGV[2] == 'e') then
  redis.call('SET', KEYS[2], token .. ' ' .. begun .. ' ' .. ARGV[2], 'KEEPTTL')
  fenced = 1
end
local pxat = redis.call('PEXPIRETIME', KEYS[1])
local meta = redis.call('GET', KEYS[3])
local start, written, rest = string.match(meta or '', '^(%d+) (%d+) %d+ (.*)$')
local old = not start or tonumber(start) <= S or (pxat ~= -2 and tonumber(written) ~= pxat)
if old and ARGV[2] == 'e' then
  removed = redis.call('DEL', KEYS[1])
  redis.call('DEL', KEYS[3])
  if removed == 1 then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
elseif old and (pxat ~= -2 or start) then
  if not later then due = 1 end
  local mark = string.format('%.0f', S)
  if start then
    redis.call('SET', KEYS[3], start .. ' ' .. written .. ' ' .. mark .. ' ' .. rest, 'KEEPTTL')
  else
    local left = redis.call('PTTL', KEYS[1])
    if left < 0 then left = tonumber(ARGV[3]) end
    redis.call('SET', KEYS[3], '0 0 ' .. mark .. ' - {}', 'PX', string.format('%.0f', math.max(left, 1)))
  end
elseif old and not token then
  due = 2
end
return {fenced, due, removed}
