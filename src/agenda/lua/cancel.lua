-- Take evicted entries off the agenda, except those that were asked for since the eviction.
-- A change of the key pattern evicts the entries of the earlier one in the same way.
-- score.lua stands before this.
-- KEYS  1 agenda
-- ARGV  1 the eviction's time (ms)  2… entries (at most 1,000)
-- An entry stays as it is if it became urgent since then, if a warmup, a demand or a person has scheduled it since
-- then, or if one of these has claimed it: its fetch has not begun.
-- All else leaves or becomes a recheck, which fetches a value that is invalidated, and nothing where there is none. A
-- value may have been loaded and invalidated since the eviction. The agenda does not tell: such an invalidation may be
-- claimed or running by now, wait behind an older one or a manual request, or have marked a fetch whose worker then
-- died. The entry's metadata do. What waits for the end of a TTL (2) or is a recheck (5) leaves: an invalidation would
-- have replaced it. A recheck is due in a millisecond: see due.lua.
-- Returns how many left or became rechecks
local evicted_at = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local entries, out, moves = {}, {}, {}
for i = 2, #ARGV do entries[i - 1] = ARGV[i] end
if not entries[1] then return 0 end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(entries))
for i, entry in ipairs(entries) do
  if scores[i] then
    local at, state, trigger, priority = decode(tonumber(scores[i]))
    -- Neither an invalidation (1) and its recheck (5) nor the end of the TTL (2).
    local asked = trigger ~= 1 and trigger ~= 2 and trigger ~= 5
    local stays = false
    if state == 'claimed' then
      stays = asked
    elseif state == 'urgent' or state == 'scheduled' and asked then
      -- A warmup schedules its entries up to a second ahead. Later than that: a retry, which goes.
      stays = at > evicted_at and at <= now + (state == 'urgent' and 1 or 1000)
    end
    if not stays and (state == 'running' or trigger ~= 2 and trigger ~= 5) then
      moves[#moves + 1] = encode(now + 1, priority > 0 and 'urgent' or 'scheduled', 5, priority)
      moves[#moves + 1] = entry
    elseif not stays then
      out[#out + 1] = entry
    end
  end
end
if out[1] then redis.call('ZREM', KEYS[1], unpack(out)) end
if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end
return #out + #moves / 2
