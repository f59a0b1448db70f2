-- Count that a round has passed in which nobody may have said that a job is known; drop all that is kept of it after so many.
-- In one step with the count, which is 0 again before a worker that knows the job does anything for it.
-- KEYS  1 rounds since the job was known (string)  2… what is kept of the job (at most 10; sets and hashes, freed in the background)
-- ARGV  1 rounds after which it goes  2 '1': count this one
-- Returns 1 if it is time, or all is dropped
local rounds = tonumber(redis.call('GET', KEYS[1]) or '')
if not rounds then return 0 end
if ARGV[2] == '1' then rounds = redis.call('INCR', KEYS[1]) end
if rounds <= tonumber(ARGV[1]) then return 0 end
if ARGV[2] ~= '1' then redis.call('UNLINK', unpack(KEYS)) end
return 1
