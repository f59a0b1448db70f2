#!lua flags=allow-oom
-- Put entries on a job's agenda, or move them forward. Scores: see src/agenda.rs.
-- A weaker reason gives way to a stronger one: what a demand would leave alone, an invalidation does not.
-- KEYS  1 agenda
-- ARGV  1 how: 'urgent' now, before all else
--             'mass' before all that is merely due; in order of ARGV 3
--             'due' at ARGV 3, unless it is due earlier, claimed or taken
--             'keep' at ARGV 3, unless it is on the agenda already; a look is then owed by the warmup or the person that it is
--               there for, unless a worker has taken it: that compares its score, and take.lua knows of the debt
--             'there' as 'due', but only if it is on the agenda
--       2 the trigger's number  3 when (ms; 0: now; not for 'urgent')
--       4 '1': an invalidation: what a worker has taken is made due again; so is what is only claimed (and will be fetched
--         anyway), if less urgently
--       5 channel of signals  6 the signal to send if anything is due soon: before dispatchers would look by themselves
--       7… entries (at most 1,000)
-- Returns how many moved
local how, trigger, override = ARGV[1], tonumber(ARGV[2]), ARGV[4] == '1'
-- cron, invalidation, expiry, demand, manual, settle; cron and manual in the place of a look that is still owed
local strength = {[0] = 3, 4, 2, 1, 5, 0, 3, 5}
local owing = {[0] = 6, [4] = 7}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = tonumber(ARGV[3])
if at == 0 then at = now end
local pressing = how == 'urgent' or how == 'mass'
-- What was named by itself stays before those that were named together.
local function score(single, of, mass)
  if single then return string.format('%.6f', now - 4e13 + of / 64) end
  return string.format('%.6f', at - ((mass or how == 'mass') and 3e13 or 0) + of / 64)
end
local text = score(how == 'urgent', trigger)
local owed = owing[trigger] and score(how == 'urgent', owing[trigger])
local entries, moves = {}, {}
for i = 7, #ARGV do entries[i - 6] = ARGV[i] end
if not entries[1] then return 0 end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(entries))
for i, entry in ipairs(entries) do
  local old = scores[i] and tonumber(scores[i])
  local move, as = nil, text
  if not old then
    move = how ~= 'there'
  elseif how == 'keep' then
    local bits = math.floor((old - math.floor(old)) * 64)
    local owes = trigger == 5 and bits < 32 and owing[bits % 8]
    move = owes
    as = owes and string.format('%.6f', old + (owes - bits % 8) / 64)
  else
    local bits = math.floor((old - math.floor(old)) * 64)
    local before = bits % 8
    local stronger = strength[trigger] > (strength[before] or 0)
    local of = strength[trigger] < (strength[before] or 0) and before or trigger
    -- What an invalidation or a demand fetches is looked at once more in any case.
    if before >= 5 and owing[of] then
      of = owing[of]
      as = owed or text
    end
    if old < -2.5e13 then
      local single = how == 'urgent' or old < -3.5e13
      -- What waits for an input, or for its retry, comes forward as urgent as it is.
      local forward = how == 'there' and at < math.floor(old) + (old < -3.5e13 and 4e13 or 3e13)
      move = forward or pressing and (stronger or (how == 'urgent' and old > -3.5e13) or tonumber(text) < math.floor(old))
      as = score(single, of, true)
    elseif old < -1e13 then
      -- Who looks at an entry once more (settle), or whether it is read still (expiry), may fetch nothing.
      local urgency = how == 'urgent' and 2 or how == 'mass' and 1 or 0
      -- What is being made while its input changes is made again as urgently.
      local held = math.floor(bits / 8) % 4
      if how == 'there' and held > 0 and as == text then as = score(held == 2, trigger, true) end
      move = (override and (bits >= 32 or math.floor(bits / 8) < urgency)) or (before == 5 and trigger ~= 5) or (before == 2 and pressing)
    else
      move = pressing or at < math.floor(old) or (stronger and at <= now)
      as = score(how == 'urgent', of)
    end
  end
  if move then
    moves[#moves + 1] = as
    moves[#moves + 1] = entry
  end
end
if not moves[1] then return 0 end
redis.call('ZADD', KEYS[1], unpack(moves))
if pressing or at < now + 5000 then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
return #moves / 2
