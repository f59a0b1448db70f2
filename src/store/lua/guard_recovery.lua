-- Note that an entry is well again whose removal was held back, or that its value has expired or was evicted. Noting it
-- twice does no harm. guard.lua stands before this.
-- KEYS  1 guard
-- ARGV  1 the entry  2 the minute (ms)  3 when it was last held back (guard.lua): if it was later, nothing is done; ''
--       whenever that was
-- Returns 1 if the guard knew the entry
if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], '=' .. ARGV[1]) ~= ARGV[3] then return 0 end
return forget(KEYS[1], read_guard(KEYS[1]), ARGV[1], clock(), tonumber(ARGV[2]))
