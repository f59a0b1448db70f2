#!lua flags=allow-oom
-- Leave the mark of Redis's servers (src/redis/incarnation.rs), unless another worker has left one since ours was read.
-- KEYS  1 the mark
-- ARGV  1 the mark as it was read; '' where there was none  2 the mark to leave
-- Returns 1 if it was left
-- A key of another type is somebody else's: Redis's error.
if redis.call('GETRANGE', KEYS[1], 0, -1) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
