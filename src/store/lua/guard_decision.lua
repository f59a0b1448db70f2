-- Note a person's decision on the removals that a guard holds back. guard.lua stands before this.
-- KEYS  1 guard
-- ARGV  1 'accept': they are let through, and so are all others for as long as a guard holds; also where none is held
--         'hold': they are held back for that much longer, also where they were accepted. Where none is held back any
--         more, an acceptance ends and the guard counts again; without one there is nothing to hold
--         'forget': the job has no guard any more. A key that holds no hash is somebody else's, and stays
--       2 how long a guard holds (ms)  3 the longest time for which removals can be held back (ms)
-- Returns 1 if it is done; 0 if there is nothing to hold, or to forget
if ARGV[1] == 'forget' then
  return redis.call('TYPE', KEYS[1]).ok == 'hash' and redis.call('UNLINK', KEYS[1]) or 0
end
local now, guard, hold = clock(), read_guard(KEYS[1]), tonumber(ARGV[2])
local active = is_active(guard, now)
-- A restored guard may hold back entries that it does not know yet.
local holds_any = guard.held > 0 or guard.restored == 1
if ARGV[1] == 'accept' then
  if not active then
    redis.call('UNLINK', KEYS[1])
    guard.since, guard.gone, guard.of, guard.held, guard.last, guard.restored = now, 0, 0, 0, 0, 0
  end
  guard.accepted, guard['until'] = 1, now + hold
elseif active and guard.accepted == 1 and not holds_any then
  guard.accepted, guard['until'] = 0, now
elseif active and holds_any then
  guard.accepted, guard['until'] = 0, math.min(guard['until'] + hold, now + tonumber(ARGV[3]))
else
  return 0
end
write_guard(KEYS[1], guard, now)
return 1
