-- Withdraws audits of a job that no worker has taken.
-- KEYS  1 audits (hash)
-- ARGV  1 the job  2 how many at most
-- Returns how many are still asked for
-- Those that somebody else asked for stay.
local asked = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '') or 0
if asked > tonumber(ARGV[2]) then return redis.call('HINCRBY', KEYS[1], ARGV[1], -ARGV[2]) end
redis.call('HDEL', KEYS[1], ARGV[1])
return 0
