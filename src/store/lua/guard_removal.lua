-- Decide on the removal of a value that is gone at its upstream, or with an input. Removals are counted in a sliding
-- minute, which is estimated from two fixed ones. The removal that exceeds the job's share trips the guard, if there
-- are enough of them: it and all others are held back until the guard ends. An entry that was held back until the end
-- of a guard is then removed. The guard knows each entry that it holds back, and each such answer notes the entry anew:
-- so what a lost guard held back is known again once each entry was asked for again.
-- guard.lua stands before this.
-- KEYS  1 guard  2 agenda of the job
-- ARGV  1 the share of the job's entries that may be removed within a minute (%)
--       2 so many removals within a minute are enough  3 the minute (ms)
--       4 how long removals are held back (ms)  5 the longest time for which they can be (ms)
--       6 until when this entry's removal was to be held back, as its metadata say (ms; 0: it was not)
--       7 so many are enough if they are more than half of the job's entries  8 the entry
-- Returns {0}: remove it
--       | {1 | 2 if this tripped the guard, now, since, until, gone, of, held}: it is held back; the rest as in
--         guard.lua
local share, minute, hold, longest = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now, guard, marked = clock(), read_guard(KEYS[1]), tonumber(ARGV[6])
-- By a clock that ran ahead.
if marked > now + longest then marked = 0 end
local is_over = marked > 0 and marked <= now
-- Notes the entry and the time; returns true if the guard did not know it.
local function note()
  if redis.call('HSET', KEYS[1], '=' .. ARGV[8], string.format('%.0f', now)) == 0 then return false end
  guard.held = guard.held + 1
  return true
end
local function held_back(how) return {how, now, guard.since, guard['until'], guard.gone, guard.of, guard.held} end
if is_active(guard, now) then
  -- A guard that began before the mark's end is the same one, which a person prolonged.
  if guard.accepted == 1 or is_over and guard.since >= marked then
    forget(KEYS[1], guard, ARGV[8], now, minute)
    return {0}
  end
  -- All others are well again, and the upstream is still not.
  if note() and guard.held == 1 and guard.restored == 0 then
    guard['until'] = math.max(guard['until'], math.min(now + hold, guard.since + longest))
  end
  guard.last = now
  write_guard(KEYS[1], guard, now)
  return held_back(1)
end
if is_over then return {0} end
-- The guard that gave the mark has ended: a person accepted removals, or the upstream was well again. One of the future
-- has not: the clock was set back.
if guard.since > 0 and guard.since <= now then marked = 0 end
local present = math.floor(now / minute)
if guard.minute == present - 1 then
  guard.before, guard.most_before = guard.count, guard.most
elseif guard.minute ~= present then
  guard.before, guard.most_before = 0, 0
end
if guard.minute ~= present then guard.minute, guard.count, guard.most = present, 0, 0 end
guard.most = math.max(guard.most, redis.call('ZCARD', KEYS[2]))
local gone = math.ceil(guard.before * (1 - now % minute / minute)) + guard.count + 1
local of = math.max(guard.most, guard.most_before, gone)
local least = math.min(tonumber(ARGV[2]), math.max(tonumber(ARGV[7]), math.floor(of / 2) + 1))
-- A mark of a guard that is not there: Redis lost the guard, and the mark sets it up again.
if marked == 0 and (gone < least or gone * 100 <= share * of) then
  guard.count = guard.count + 1
  write_guard(KEYS[1], guard, now)
  return {0}
end
-- What it held back before is past, or is known again soon.
redis.call('UNLINK', KEYS[1])
guard.since, guard.accepted, guard.held, guard.last, guard.restored = now, 0, 0, now, marked > 0 and 1 or 0
note()
guard.gone, guard.of, guard['until'] = gone, of, marked > 0 and math.min(marked, now + hold) or now + hold
write_guard(KEYS[1], guard, now)
return held_back(2)
