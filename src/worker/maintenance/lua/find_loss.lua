#!lua flags=allow-oom
-- Note when a loss of data was found, unless a worker has found it before.
-- KEYS  1 the loss
-- ARGV  1 now (ms)  2 how long it is remembered (ms)
-- Returns {when it was first found (ms, text), 1 if that is now}
-- A key of another type is somebody else's, and tells nothing.
local found = redis.call('MGET', KEYS[1])[1]
if found then return {found, 0} end
return {ARGV[1], redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0}
