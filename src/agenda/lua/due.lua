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
local moved = 0
for i = 7, #ARGV do
  local old = redis.call('ZSCORE', KEYS[1], ARGV[i])
  old = old and tonumber(old)
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
    redis.call('ZADD', KEYS[1], text, ARGV[i])
    moved = moved + 1
  end
end
if moved > 0 and (how == 'urgent' or at < now + 5000) then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
return moved
