-- Give a value the expiry back that Samovar gave it: MIGRATE, which moves it to another master of a Cluster, changes it
-- by the time that it takes and by the difference of the clocks. The caller has found that the value has the content
-- that Samovar wrote. An expiry that is over, or nearly, is not given back: that would delete what another program
-- wrote.
-- KEYS  1 value
-- ARGV  1 its PEXPIRETIME before the caller read it  2 the expiry to give back (ms)
-- Returns 1 if it has that expiry now, also if another caller gave it back; 0 if it was written since, or is gone
local at, time = redis.call('PEXPIRETIME', KEYS[1]), redis.call('TIME')
if at == tonumber(ARGV[2]) then return 1 end
if at ~= tonumber(ARGV[1]) or tonumber(ARGV[2]) <= time[1] * 1000 + 1000 then return 0 end
redis.call('PEXPIREAT', KEYS[1], ARGV[2])
return 1
