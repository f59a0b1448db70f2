-- Writes a loaded value, if its lease is still held and nothing was written or invalidated since.
-- lease_record.lua stands before this.
-- KEYS  1 value  2 lease
-- ARGV  1 token  2 value (JSON)  3 TTL (ms; '' for none)  4 channel of changes ('' for none)
--       5 the change, as announced
-- Returns 1 if it was written
local token, _, mark = read_lease(redis.call('GET', KEYS[2]))
if token ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if mark ~= LOAD then return 0 end
local written
if ARGV[3] == '' then
  written = redis.call('SET', KEYS[1], ARGV[2], 'NX')
else
  written = redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3])
end
if not written then return 0 end
if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return 1
