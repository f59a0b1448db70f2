-- Note that an entry is well again whose removal was held back, or that its value has expired or was evicted. Noting it
-- twice does no harm. guard.lua stands before this.
-- KEYS  1 guard
-- ARGV  1 the entry  2 the minute (ms)
-- Returns 1 if the guard knew the entry
return forget(KEYS[1], read_guard(KEYS[1]), ARGV[1], clock(), tonumber(ARGV[2]))
