#!lua flags=allow-oom
-- Put entries on a job's agenda, or move them forward. score.lua stands before this.
-- A weaker reason gives way to a stronger one: what a demand would leave alone, an invalidation does not. A recheck and
-- a look whether an entry is still read (expiry) may fetch nothing: they give way also where the entry keeps its time.
-- A running entry that is made due again is due a millisecond later, and no call brings it forward by that. Taken again
-- in the millisecond in which it was taken, it could have the same score, and the first worker would end the second's
-- work.
-- KEYS  1 agenda
-- ARGV  1 how: 'urgent' now, before all else
--             'bulk' before all that is merely due; in order of ARGV 3
--             'due' at ARGV 3, unless it is due earlier, claimed or running; an urgent entry that waits comes forward
--             only for a warmup or a manual request, and keeps its time for other triggers
--             'keep' at ARGV 3, unless it is on the agenda already
--             'there' as 'due', but only if it is on the agenda
--             'soon' as 'there', but only if it is due in at most ARGV 3 (ms), and neither claimed nor running
--       2 the trigger's number  3 when (ms; 0: now; not for 'urgent', 'there')
--       4 '1': an invalidation or a manual request: a running entry is made due again; so is one that is only claimed
--         (and will be fetched anyway), if less urgently
--       5 channel of signals  6 the signal to send if anything is due soon: before dispatchers would look by themselves
--       7… entries (at most 1,000)
-- Returns how many moved
local how, trigger, override = ARGV[1], tonumber(ARGV[2]), ARGV[4] == '1'
-- cron, invalidation, expiry, demand, manual, recheck
local strength = {[0] = 3, 4, 2, 1, 5, 0}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = tonumber(ARGV[3])
local latest
if how == 'soon' then
  how, latest, at = 'there', now + at, now
end
if at == 0 then at = now end
local priority = how == 'urgent' and 2 or how == 'bulk' and 1 or 0
-- An entry of high priority keeps it among those that were named together.
local function score(high, bulk, of, earliest)
  if high then return encode(math.max(now, earliest), 'urgent', of, 2) end
  return encode(math.max(at, earliest), (bulk or how == 'bulk') and 'urgent' or 'scheduled', of, 1)
end
local text = score(how == 'urgent', false, trigger, 0)
local entries, moves = {}, {}
for i = 7, #ARGV do entries[i - 6] = ARGV[i] end
if not entries[1] then return 0 end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(entries))
for i, entry in ipairs(entries) do
  local move, as = nil, text
  if not scores[i] then
    move = how ~= 'there'
  elseif how ~= 'keep' then
    local old = tonumber(scores[i])
    local old_at, state, before, held = decode(old)
    local weaker = strength[trigger] < strength[before]
    local stronger = strength[trigger] > strength[before]
    local of = weaker and before or trigger
    local earliest = (state == 'running' or old_at == now + 1) and now + 1 or 0
    local waits = state == 'urgent' or state == 'scheduled'
    if latest and (old_at > latest or state == 'claimed' or state == 'running') then
      move = false
    elseif state == 'urgent' then
      -- An entry that waits for an input, a limit, or its retry comes forward with the same priority.
      local forward = at < old_at and (how == 'there' or how == 'due' and (trigger == 0 or trigger == 4))
      move = forward or priority > 0 and (stronger or priority > held or tonumber(text) < math.floor(old))
      as = score(how == 'urgent' or held == 2, true, of, earliest)
    elseif state == 'scheduled' then
      move = priority > 0 or at < old_at or (stronger and at <= now)
      as = score(how == 'urgent', false, of, earliest)
    else
      -- An entry whose input changes while it is made is made again with the same priority.
      local keeps = how == 'there' and held > 0
      as = score(how == 'urgent' or keeps and held == 2, keeps, trigger, earliest)
      -- A recheck, and a look whether it is still read (expiry), may fetch nothing.
      move = override and (state == 'running' or held < priority) or before == 5 and trigger ~= 5
        or before == 2 and priority > 0
    end
    if waits and stronger and not move and (before == 5 or before == 2) then
      move, as = true, encode(old_at, state, trigger, held)
    end
  end
  if move then
    moves[#moves + 1] = as
    moves[#moves + 1] = entry
  end
end
if not moves[1] then return 0 end
redis.call('ZADD', KEYS[1], unpack(moves))
if priority > 0 or at < now + 5000 then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
return #moves / 2
