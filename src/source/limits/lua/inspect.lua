-- Says whether an upstream admits anything, and takes back permits that nobody uses any more. Counts tokens that
-- could not be counted when they were spent, and deletes a token window that is over.
--
-- KEYS    as in state.lua
-- ARGV[1] tokens that may be spent in a window, 0 for no limit
-- ARGV[2] the token window in milliseconds
-- ARGV[3] tokens spent and not yet counted
-- ARGV[4] the channel on which the other gates are told
-- ARGV[5] and what
-- ARGV[6], … permits handed back, a hundred at most
-- returns { reason, microseconds, told, health }: why nothing is admitted, and for how long; told as in
-- return_permit.lua
-- Work: the requests under way.

take_back(6)
reserved(math.huge)
local tokens, budget = tonumber(ARGV[3]), tonumber(ARGV[1])
local used_up, told = false, 0
if tokens > 0 and budget > 0 then
  -- Last, so that nothing is counted twice where something else fails.
  used_up, told = book(tokens, tonumber(ARGV[2]), budget)
else
  local _, left = window()
  if left == 0 then redis.call('DEL', KEYS[3]) end
end
if used_up then redis.pcall('PUBLISH', ARGV[4], ARGV[5]) end
local reason, wait, late = closed(budget)
return { reason, wait * 1000, math.max(told, late), health() }
