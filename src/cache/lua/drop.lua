-- End a load that brought nothing to be written.
-- KEYS  1 lease
-- ARGV  1 token
-- Returns 1 if the lease was ours
local token = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) ')
if token ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
