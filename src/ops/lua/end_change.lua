-- Notes that all outdated values of a job are on the agenda, unless a worker with another file began meanwhile.
-- KEYS  1 noted digests (hash, job to field: begin_files.lua)
-- ARGV  1 job  2 the field when the values were examined  3 the digest that they are made from now
-- Returns 1 if it is noted
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
