-- Begin a task: its entries go from claimed to taken, unless the agenda says otherwise by now.
-- KEYS  1 agenda
-- ARGV  1 for how long at most (ms)  2… pairs: entry, score while claimed (500 pairs at most)
-- Returns for each pair the score while taken, or '' where somebody else has the entry or it left the agenda
local time = redis.call('TIME')
local till = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
local entries, moves, reply = {}, {}, {}
for i = 2, #ARGV, 2 do entries[#entries + 1] = ARGV[i] end
if not entries[1] then return reply end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(entries))
for i, entry in ipairs(entries) do
  local claimed = tonumber(ARGV[2 * i + 1])
  if scores[i] and tonumber(scores[i]) == claimed then
    local bits = math.floor((claimed - math.floor(claimed)) * 64) % 32 + 32
    reply[i] = string.format('%.6f', till - 2e13 + bits / 64)
    moves[#moves + 1] = reply[i]
    moves[#moves + 1] = entry
  else
    reply[i] = ''
  end
end
if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end
return reply
