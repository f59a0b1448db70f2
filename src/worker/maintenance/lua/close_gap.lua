#!lua flags=allow-oom
-- Notes that a gap is handled for the jobs that the caller knows. Closes the gap once that is true of all jobs, unless
-- there is a newer one. Drops the lock if it is the caller's. The time of the latest closed gap stays in the clock, for
-- workers of the previous build: they take an invalidation from before it for one of the gap.
-- KEYS  1 the gap (suspect.lua)  2 the lock  3 the handled jobs (hash, job to gap)
--       4 the clock (hash): `revalidated`, the time of the latest closed gap (ms)
-- ARGV  1 the gap as it was handled  2 the caller, '' if it has no lock
--       3 the number of fields for the jobs that the caller has handled
--       4… these fields, then those of all jobs of the fleet: for each job its name and its identity (name and keys)
-- Returns 1 if nothing is left for the caller to do
if redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('DEL', KEYS[2]) end
local gap = redis.call('GET', KEYS[1])
if not gap then
  redis.call('DEL', KEYS[3])
  return 1
elseif gap ~= ARGV[1] then
  return 0
end
local known = tonumber(ARGV[3])
for i = 4, 3 + known do
  redis.call('HSET', KEYS[3], ARGV[i], gap)
  redis.call('HDEL', KEYS[3], 'spared ' .. ARGV[i])
end
for i = 4 + known, #ARGV do
  if redis.call('HGET', KEYS[3], ARGV[i]) ~= gap then return 1 end
end
redis.call('DEL', KEYS[1], KEYS[3])
-- A clock of another type is somebody else's: the entries are then rechecked more often.
local at, time = string.match(gap, '^%d+'), redis.call('TIME')
local last = redis.pcall('HGET', KEYS[4], 'revalidated')
last = type(last) == 'string' and tonumber(last) or 0
-- A last time in the future was noted before the clock was set back.
if at and (tonumber(at) > last or last > time[1] * 1000 + 1000) then
  redis.pcall('HSET', KEYS[4], 'revalidated', at)
end
return 1
