-- Renews or releases a lock, if the token still holds it.
-- KEYS  1 lock
-- ARGV  1 token  2 how long it holds from now on (ms; 0: let it go)
-- Returns 1 if it was
local holder = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) ')
if holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
