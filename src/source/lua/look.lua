-- Says whether an upstream admits anything, and takes back permits that nobody uses any more. Deletes a token window that is over.
--
-- KEYS    as in state.lua
-- ARGV[1] tokens that may be spent in a window, 0 for no limit
-- ARGV[2], … permits handed back, a hundred at most
-- returns { reason, microseconds, 0, health }: why nothing is admitted, and for how long
-- Work: constant.

take_back(2)
local _, left = window()
if left == 0 then redis.call('DEL', KEYS[3]) end
local reason, wait = closed(tonumber(ARGV[1]))
return { reason, wait * 1000, 0, health() }
