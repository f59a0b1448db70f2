-- Note that an entry is well again whose removal was held back, or that its value has expired or was evicted. With the
-- last of them the guard ends, a minute after it last held a removal back: an upstream that wavers trips it no second
-- time. guard.lua stands before this.
-- KEYS  1 guard
-- ARGV  1 until when the entry's removal was held back, as its metadata say (ms)  2 the minute (ms)
-- Returns 1 if the guard counted the entry
local now, guard = clock(), read_guard(KEYS[1])
if not is_active(guard, now) or guard.accepted == 1 or guard.since >= tonumber(ARGV[1]) then return 0 end
guard.held = math.max(guard.held - 1, 0)
if guard.held == 0 then guard['until'] = math.min(guard['until'], math.max(now, guard.last + tonumber(ARGV[2]))) end
write_guard(KEYS[1], guard, now)
return 1
