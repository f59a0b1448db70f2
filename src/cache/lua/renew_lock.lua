-- Renews or releases a lock, if the token still holds it.
-- KEYS  1 lock
-- ARGV  1 token  2 TTL from now on (ms; 0 releases it)
-- Returns 1 if the token held it
local holder = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) ')
if holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
