-- Put entries on a job's agenda, or move them forward. Scores: see src/agenda.rs.
-- KEYS  1 agenda
-- ARGV  1 how: 'urgent' now, before all else
--             'due' at ARGV 3, unless it is due earlier, claimed or taken
--             'keep' at ARGV 3, unless it is on the agenda already
--             'there' as 'due', but only if it is on the agenda
--       2 the trigger's number  3 when (ms; 0: now; not for 'urgent')
--       4 '1': an invalidation: what a worker has taken is made due again (what is only claimed is fetched later anyway)
--       5 channel of signals  6 the signal to send if anything is due soon: before dispatchers would look by themselves
--       7… entries (at most 1,000)
-- Returns how many moved
local how, trigger, override = ARGV[1], tonumber(ARGV[2]), ARGV[4] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = tonumber(ARGV[3])
if at == 0 then at = now end
local score = at + trigger / 32
if how == 'urgent' then score = now - 3e13 + trigger / 32 end
local text = string.format('%.5f', score)
local entries, moves = {}, {}
for i = 7, #ARGV do entries[i - 6] = ARGV[i] end
if not entries[1] then return 0 end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(entries))
for i, entry in ipairs(entries) do
  local old = scores[i] and tonumber(scores[i])
  local move
  if not old then
    move = how ~= 'there'
  elseif how == 'keep' then
    move = false
  elseif old < -2.5e13 then
    move = how == 'urgent' and score < math.floor(old)
  elseif old < -1e13 then
    local taken = math.floor((old - math.floor(old)) * 32) >= 16
    move = override and taken
  else
    move = score < old
  end
  if move then
    moves[#moves + 1] = text
    moves[#moves + 1] = entry
  end
end
if not moves[1] then return 0 end
redis.call('ZADD', KEYS[1], unpack(moves))
if how == 'urgent' or at < now + 5000 then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
return #moves / 2
