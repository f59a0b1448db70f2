#!lua flags=allow-oom
-- Handle an invalidation of one entry: what was fetched at or before its time S is refused, removed or made due.
-- The lease's record and marks: src/store/lease.rs. lease_record.lua and meta.lua stand before this.
-- A value that was fetched after S is left alone, so that handling twice, late, or by every worker does no harm. A
-- fetched_at in the future is by another clock, and counts as older. A value of another type is never removed.
-- But a refresh is late if the entry was fetched since S for another reason: the upstream may have lagged. It counts as
-- of that fetch, so another one with rechecks follows. It is not late if an invalidation is known that came no earlier
-- than shortly before S (a second, or a quarter of the last recheck), because it is open or its rechecks are to come;
-- or if the fetch began when its own last recheck would be over. One that finds a later open refresh counts as that
-- one, which may be the same. A doubt is never late, and stands for no other. Nor is an eviction late: what was asked
-- for since stays.
-- In a storm, a refresh is held off: while a fetch is under way that already followed another invalidation (mark '+'),
-- or shortly after one began; for longer where one failed, whose invalidation is noted and which is tried again. Then
-- nothing is done, and the caller comes again; so one fetch answers many. A fetched_at later than now is from a clock
-- that ran ahead, and holds nothing off.
-- A full Redis does it, too: it may write a mark, which is small and goes soon.
-- A lease or metadata of another type are somebody else's and count as absent (MGET); they hide no value from an
-- invalidation.
-- KEYS  1 value  2 lease  3 meta
-- ARGV  1 S (ms)  2 'r' refresh or 'e' evict  3 how long metadata of a value without a TTL are kept (ms)
--       4 channel of changes  5 the removal of a value, as announced
--       6 how long after a fetch for an invalidation began the next is held off (ms; 0: nothing is held off)
--       7 the same after a fetch in a storm
--       8 how long the invalidation of an entry without a value is remembered (ms): a fetch by then answers it
--       9 the version that it announces ('' none; 'any': a lower version may replace the value as well)
--      10 '1': a doubt after a gap. It replaces no open invalidation, and does not end a value that the guard of its
--         job holds back (src/store/guard.rs)
--      11 the time of the last recheck after an invalidation (ms; 0: the entry is not rechecked, and none is late)
-- Returns {1 if a fetch in flight was fenced,
--          1 if the entry is to be fetched anew and nobody does yet; 2 if nothing is known of it;
--            3 as 1, although a fetch was fenced: a service's load, which does not begin anew, or a fetch whose entry
--              was evicted, and has left the agenda,
--          1 if a value was removed,
--          ms after which to come again: held off; else 0,
--          until when the removal of the entry's value was held back, as its metadata say, if it is evicted (ms);
--            also if the value is gone by now; else 0}
local S = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function before(at) return at <= S or at > now end
-- Returns since when the rechecks to come count (ms; 0: there are none, or only that of a doubt).
local function rechecked_since(note)
  local since, flags = match(note, '"k":%[(%d+),"[^"]*",(%d+)%]')
  -- That of a doubt has flag 32 (src/store/rechecks.rs).
  return since and flags % 64 < 32 and tonumber(since) or 0
end
local fenced, due, removed, released = 0, 0, 0, 0
local refresh = ARGV[2] == REFRESH
local known = redis.call('MGET', KEYS[2], KEYS[3])
local token, lease_fetched_at, mark = read_lease(known[1])
local pxat = redis.call('PEXPIRETIME', KEYS[1])
local validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since, note, version,
  announced, announced_at = read_meta(known[2])
local ours = validated_at and tonumber(own_expiry) == pxat
local wanted = ARGV[9] ~= 'any' and ARGV[9] or ''
if not validated_at or ARGV[9] == 'any' then version, announced, announced_at = '', '', '' end
-- One whose patience has ended, and whose invalidation was answered by a lower version.
if invalidated == '0' then announced, announced_at = '', '' end
if wanted ~= '' then
  if ours and pxat ~= -2 and not lower(version, wanted) then return {0, 0, 0, 0, 0} end
  if lower(announced, wanted) then announced = wanted end
  if announced_at == '' then announced_at = string.format('%.0f', S) end
end
local fetched = tonumber(fetched_at)
local doubt, last, is_late = ARGV[10] == '1', tonumber(ARGV[11]), false
local open = validated_at and invalidated ~= '0' and not is_doubt(note, invalidated)
-- The newest fetch: the one in flight, else that of the value.
local newest = token and tonumber(lease_fetched_at) or fetched or 0
if refresh and last > 0 and not doubt and wanted == '' and mark ~= EVICT and not before(newest) then
  local noted = open and tonumber(invalidated) or 0
  if noted >= newest then
    -- It may be this one, whose worker died before the entry was due.
    S = math.min(noted, now)
  elseif math.max(noted, rechecked_since(note or ''), newest - last) < S - math.min(1000, last / 4) then
    S, is_late = newest, true
  end
end
local pause = tonumber(ARGV[6])
if refresh and pause > 0 then
  if token then
    if mark == AGAIN and tonumber(lease_fetched_at) <= math.min(S, now) then return {0, 0, 0, 50, 0} end
  elseif validated_at then
    -- Trigger 1: an invalidation. Outcome 7: failed.
    local trigger, _, storm, outcome, began = read_attempt(attempt, note)
    local wait = 0
    if invalidated == '0' then
      if ours and fetched <= math.min(S, now) and trigger == 1 then
        wait = fetched + (storm == '1' and tonumber(ARGV[7]) or pause) - now
      end
    elseif before(fetched) and outcome == 7 and began > 0 and began <= now then
      wait = began + 4 * pause - now
    end
    if wait > 0 then return {0, 0, 0, math.ceil(wait), 0} end
  end
end
-- There is no value, and nothing is known but an invalidation.
local blank = pxat == -2 and (not validated_at or validated_at == '0' and attempt == ''
  and with_doubt(note, '') == '{}')
local at = string.format('%.0f', S)
-- The time of an open invalidation stays if it is later: a tag's stamp is found again when an earlier fetch ends.
if open and not doubt and tonumber(invalidated) > S and tonumber(invalidated) <= now then at = invalidated end
-- So does that of a doubt if a late one would take its place: the fetch for both is rechecked after the doubt.
local doubted = tonumber(is_late and validated_at and invalidated or '0')
if doubted > tonumber(at) and doubted <= now then at = invalidated end
-- Remembers the invalidation of an entry without a value. The hash tells a fetch whether it brings the old content.
local function remember()
  if doubt and open or not known[2] and redis.call('TYPE', KEYS[3]).ok ~= 'none' then return end
  redis.call('SET', KEYS[3],
    write_meta('0', '0', at, '0', hash or '-', '', '0', content_since or '', with_doubt('{}', doubt and at or ''), '',
      announced, announced_at),
    'PX', ARGV[8])
end
local held_until = tonumber(match(note or '', '"h":(%d+)')) or 0
local later = token and not before(tonumber(lease_fetched_at))
-- An eviction is told once, and not by each worker that hears it: what was asked for since would leave the agenda.
if token and not later and (refresh or mark ~= EVICT) then
  redis.call('SET', KEYS[2], write_lease(token, lease_fetched_at, ARGV[2]), 'KEEPTTL')
  fenced = 1
end
-- A value without the announced version is old, also where it was fetched after S: its upstream lagged.
local old = wanted ~= '' or not validated_at or before(fetched) or (pxat ~= -2 and not ours)
if old and not refresh then
  -- A key that holds no string is somebody else's, and stays (lease.lua).
  local kind = redis.call('TYPE', KEYS[1]).ok
  if kind == 'string' then removed = redis.call('UNLINK', KEYS[1]) end
  -- A fetch that began later answers no invalidation that is noted now: a refresh that follows is late.
  if later then at = open and invalidated or '0' end
  if kind == 'string' or kind == 'none' then
    remember()
    released = held_until
  end
  if removed == 1 then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
  if kind == 'none' and not token then due = 2 end
elseif old and not blank then
  if not later then due = 1 end
  if ours and stale_for ~= '0' and not (doubt and held_until > now) then
    -- Invalidated, it lives no longer than its TTL.
    own_expiry, stale_for = string.format('%.0f', pxat - tonumber(stale_for)), '0'
    redis.call('PEXPIREAT', KEYS[1], own_expiry)
    if redis.call('EXISTS', KEYS[1]) == 0 then
      removed = 1
      redis.call('PUBLISH', ARGV[4], ARGV[5])
    end
  end
  if validated_at then
    -- Redis's clock was set back. When it was fetched by the present clock is not known, so it is older than anything.
    if validated_at ~= '0' and (S > now or tonumber(validated_at) > now or fetched > now) then
      validated_at, fetched_at = '1', '1'
    end
    if doubt and open then at = invalidated else note = with_doubt(note, doubt and at or '') end
    -- Metadata that remember an eviction live for a minute; the value that they now tell of may outlive them.
    local life = math.max(redis.call('PTTL', KEYS[3]), redis.call('PTTL', KEYS[1]), 1)
    redis.call('SET', KEYS[3],
      write_meta(validated_at, own_expiry, at, stale_for, hash, attempt, fetched_at, content_since, note,
        version, announced, announced_at), 'PX', string.format('%.0f', life))
  else
    local left = redis.call('PTTL', KEYS[1])
    if left < 0 then left = tonumber(ARGV[3]) end
    redis.call('SET', KEYS[3],
      write_meta('0', '0', at, '0', '-', '', '0', '', with_doubt('{}', doubt and at or ''), '', announced,
        announced_at),
      'PX', string.format('%.0f', math.max(left, 1)))
  end
elseif old then
  if not token then due = 2 end
  remember()
end
if refresh and fenced == 1 and (mark == LOAD or mark == EVICT) then due = 3 end
return {fenced, due, removed, 0, released}
