-- The suspicion of a time is dealt with: drop the note, unless there is a newer one, and the lock, if it is the caller's.
-- KEYS  1 the note (suspect.lua)  2 the lock
-- ARGV  1 the note as it was dealt with  2 the caller
-- Returns 1 if there is nothing left to do
if redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('DEL', KEYS[2]) end
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1 - redis.call('EXISTS', KEYS[1])
