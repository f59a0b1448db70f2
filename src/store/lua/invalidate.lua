#!lua flags=allow-oom
-- Handle an invalidation of one entry: what was fetched at or before its time S is refused, removed or made due.
-- What was fetched after S is left alone, so that handling twice, late, or by every worker does no harm; what claims to be
-- fetched in the future was so by another clock, and is not. What was extended with nobody asked (extend.lua) was fetched when
-- somebody last was. What holds no string is never removed.
-- In a storm, a refresh is held off: while a fetch is under way that already followed another invalidation (its lease is
-- marked '+'), or shortly after one began; for longer where one failed, which has its mark and is tried again. Then nothing
-- is done, and the caller comes again; so that one fetch answers many. What has a time later than now has it from a clock that
-- ran ahead, and holds nothing off.
-- In the note "t":1 says that it was fetched for an invalidation, "t":5 for the second look that follows one, "s":1 in a storm, and
-- "o":7 that this failed (meta.rs).
-- A full Redis does it, too: it may write a mark, and what an eviction frees is more.
-- A lease or metadata of another type are somebody else's and count as absent (MGET); they hide no value from an
-- invalidation.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 S (ms)  2 'r' refresh or 'e' evict  3 how long the note on a value without a TTL is kept (ms)
--       4 channel of changes  5 the removal of a value, as announced
--       6 how long after a fetch for an invalidation began the next is held off (ms; 0: nothing is held off)
--       7 the same after a fetch in a storm
-- Returns {1 if a fetch in flight was fenced,
--          1 if the entry is to be fetched anew and nobody does yet; 2 if nothing is known of it;
--            3 as 1, although a fetch was fenced: a service's load, which does not begin anew,
--          1 if a value was removed,
--          ms after which to come again: held off; else 0}
local S = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function before(start) return start <= S or start > now end
local fenced, due, removed = 0, 0, 0
local refresh = ARGV[2] == 'r'
local known = redis.call('MGET', KEYS[2], KEYS[3])
local token, begun, busy = string.match(known[1] or '', '^(%S+) (%d+) (%S)$')
local pxat = redis.call('PEXPIRETIME', KEYS[1])
local start, written, invalid, outlived, rest =
  string.match(known[2] or '', '^(%d+) (%d+) (%d+) (%d+) (.*)$')
local ours = start and tonumber(written) == pxat
local asked = start and tonumber(string.match(rest, '^[^ ~@]+~(%d+)') or start)
local storm = tonumber(ARGV[6])
if refresh and storm > 0 and token and busy == '+' and tonumber(begun) <= math.min(S, now) then
  return {0, 0, 0, 50}
elseif refresh and storm > 0 and not token and ours and invalid == '0' and asked <= math.min(S, now)
  and string.find(rest, '"t":[15]') then
  local pause = string.find(rest, '"s":1', 1, true) and tonumber(ARGV[7]) or storm
  local wait = asked + pause - now
  if wait > 0 then return {0, 0, 0, math.ceil(wait)} end
end
if refresh and storm > 0 and not token and start and invalid ~= '0' and before(asked) then
  local failed = string.find(rest, '"o":7', 1, true) and string.match(rest, '"a":(%d+)')
  local wait = failed and tonumber(failed) <= now and tonumber(failed) + 4 * storm - now or 0
  if wait > 0 then return {0, 0, 0, math.ceil(wait)} end
end
local later = token and not before(tonumber(begun))
-- An eviction is told once, and not by each worker that hears it: what was asked for since would leave the agenda.
if token and not later and (refresh or busy ~= 'e') then
  redis.call('SET', KEYS[2], token .. ' ' .. begun .. ' ' .. ARGV[2], 'KEEPTTL')
  fenced = 1
end
local old = not start or before(asked) or (pxat ~= -2 and not ours)
if old and not refresh then
  -- A key that holds no string is somebody else's, and stays (lease.lua).
  local kind = redis.call('TYPE', KEYS[1]).ok
  if kind == 'string' then removed = redis.call('UNLINK', KEYS[1]) end
  if known[2] then redis.call('UNLINK', KEYS[3]) end
  if removed == 1 then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
  if kind == 'none' and not token then due = 2 end
elseif old and (pxat ~= -2 or start) then
  if not later then due = 1 end
  local mark = string.format('%.0f', S)
  if ours and outlived ~= '0' then
    -- Invalidated, it lives no longer than its TTL.
    local ends = string.format('%.0f', pxat - tonumber(outlived))
    redis.call('PEXPIREAT', KEYS[1], ends)
    if redis.call('EXISTS', KEYS[1]) == 0 then
      removed = 1
      redis.call('PUBLISH', ARGV[4], ARGV[5])
    end
    written, outlived = ends, '0'
  end
  if start then
    -- Redis's clock was set back: when it was fetched by the present one is not known, so it is older than anything.
    if tonumber(start) > 0 and (S > now or tonumber(start) > now or asked > now) then
      start, rest = '1', (string.gsub(rest, '^([^ ~@]+)~%d+', '%1'))
    end
    redis.call('SET', KEYS[3], table.concat({start, written, mark, outlived, rest}, ' '), 'KEEPTTL')
  else
    local left = redis.call('PTTL', KEYS[1])
    if left < 0 then left = tonumber(ARGV[3]) end
    redis.call('SET', KEYS[3], '0 0 ' .. mark .. ' 0 - {}', 'PX', string.format('%.0f', math.max(left, 1)))
  end
elseif old and not token then
  due = 2
end
if refresh and fenced == 1 and busy == '=' then due = 3 end
return {fenced, due, removed, 0}
