-- Give a value the expiry back that Samovar gave it: MIGRATE, which moves it to another master of a Cluster, changes it
-- by the time that it takes and by the difference of the clocks. The caller has found the value to be Samovar's.
-- KEYS  1 value
-- ARGV  1 its PEXPIRETIME before the caller read it  2 the expiry to give back (ms)
-- Returns 1 if it has that expiry now; 0 if it was written since, or is gone
if redis.call('PEXPIRETIME', KEYS[1]) ~= tonumber(ARGV[1]) then return 0 end
redis.call('PEXPIREAT', KEYS[1], ARGV[2])
return 1
