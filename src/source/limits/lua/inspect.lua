-- Says whether an upstream admits anything, and takes back permits that nobody uses any more. Counts tokens that
-- could not be counted when they were spent. Of a token window that is over, it deletes the count at once, so that a
-- clock that is set back revives no spent window, and an hour later the sums of processes: the last of them grew before
-- the window ended, and no command is carried out so late.
--
-- KEYS    as in state.lua
-- ARGV[1] tokens that may be spent in a window, 0 for no limit
-- ARGV[2] the token window in milliseconds
-- ARGV[3] the id of the process's account
-- ARGV[4] tokens that the process has spent since it began
-- ARGV[5] those of them that it heard to be counted
-- ARGV[6] the channel on which the other gates are told
-- ARGV[7] and what
-- ARGV[8], … permits handed back, a hundred at most
-- returns { reason, microseconds, told, health }: why nothing is admitted, and for how long; told as in
-- return_permit.lua
-- Work: the requests under way; and as `book`.

take_back(8)
reserved(math.huge)
local budget = tonumber(ARGV[1])
local used_up, told = false, 0
if budget > 0 then
  used_up, told = book(ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[2]), budget)
end
local _, left = window()
if left == 0 then
  redis.call('HDEL', KEYS[3], 'tokens', 'told_80', 'told_100')
  -- Or Redis's clock was set back.
  local ends = tonumber(redis.call('HGET', KEYS[3], 'ends')) or 0
  if math.abs(now - ends) > 3600000 then redis.call('DEL', KEYS[3]) end
end
if used_up then redis.pcall('PUBLISH', ARGV[6], ARGV[7]) end
local reason, wait, late = closed(budget)
return { reason, wait * 1000, math.max(told, late), health() }
