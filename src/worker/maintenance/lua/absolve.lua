#!lua flags=allow-oom
-- The suspicion of a time is dealt with as far as the caller knows jobs: note that, and drop the note when that is true of all
-- jobs, unless there is a newer one; drop the lock, if it is the caller's.
-- KEYS  1 the note (suspect.lua)  2 the lock  3 dealt with: a hash, job to the note
-- ARGV  1 the note as it was dealt with  2 the caller  3 how many fields follow for the jobs that the caller knows;
--       these, then those of all that the fleet knows: for each job its name and its identity (of name and keys)
-- Returns 1 if there is nothing left for the caller to do
if redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('DEL', KEYS[2]) end
local note = redis.call('GET', KEYS[1])
if not note then
  redis.call('DEL', KEYS[3])
  return 1
elseif note ~= ARGV[1] then
  return 0
end
local known = tonumber(ARGV[3])
for i = 4, 3 + known do redis.call('HSET', KEYS[3], ARGV[i], note) end
for i = 4 + known, #ARGV do
  if redis.call('HGET', KEYS[3], ARGV[i]) ~= note then return 1 end
end
redis.call('DEL', KEYS[1], KEYS[3])
return 1
