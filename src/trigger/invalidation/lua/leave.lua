-- Removes a reader from the inbox's group, unless messages are pending: they would be lost with it.
-- The check is in the same step, since a read that the reader gave up may still block at Redis and be given a message
-- at any moment. A message that it is given afterwards makes the reader anew, and is taken over.
-- KEYS  1 inbox (stream)
-- ARGV  1 group  2 reader
-- Returns 1 if the reader is removed
if redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])[1] then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
