-- Releases a lease without writing a value.
-- lease_record.lua stands before this.
-- KEYS  1 lease
-- ARGV  1 token
-- Returns 1 if the lease was ours
local token = read_lease(redis.call('GET', KEYS[1]))
if token ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
