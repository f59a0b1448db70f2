-- Counts a round in which no worker knew a job, or drops everything that is kept of the job once there were enough.
-- The drop checks the count in the same step: a worker that knows the job sets it to 0 before it does anything else.
-- KEYS  1 rounds since the job was known (string)
--       2… what is kept of the job (its other keys; freed in the background)
-- ARGV  1 rounds after which everything is dropped  2 '1' to count this round
-- Returns 1 if the rounds are over, or if everything is dropped
local rounds = tonumber(redis.call('GET', KEYS[1]) or '')
if not rounds then return 0 end
if ARGV[2] == '1' then rounds = redis.call('INCR', KEYS[1]) end
if rounds <= tonumber(ARGV[1]) then return 0 end
if ARGV[2] ~= '1' then redis.call('UNLINK', unpack(KEYS)) end
return 1
