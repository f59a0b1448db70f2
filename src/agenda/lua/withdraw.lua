-- Withdraw what a warmup made due of entries that neither a list nor a feed names any more.
-- score.lua stands before this.
-- KEYS  1 agenda
-- ARGV  1… entries (at most 1,000)
-- It becomes a recheck, which fetches nothing where there is no value, and leaves a value to its refresh: one of the
-- same time; for a claimed or running entry, whose fetch may not have begun, one that is due in a millisecond: see
-- due.lua. An entry that is due for another reason stays as it is.
-- Returns how many became rechecks
if not ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local moves = {}
local scores = redis.call('ZMSCORE', KEYS[1], unpack(ARGV))
for i, entry in ipairs(ARGV) do
  local at, state, trigger, priority
  if scores[i] then at, state, trigger, priority = decode(tonumber(scores[i])) end
  if trigger == 0 then
    if state == 'claimed' or state == 'running' then at = now + 1 end
    moves[#moves + 1] = encode(at, priority > 0 and 'urgent' or 'scheduled', 5, priority)
    moves[#moves + 1] = entry
  end
end
if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end
return #moves / 2
