-- Begin a task: its entries go from claimed to taken, unless the agenda says otherwise by now.
-- KEYS  1 agenda
-- ARGV  1 for how long at most (ms)  2… pairs: entry, score while claimed (500 pairs at most)
-- Returns for each pair the score while taken, which says whether it owes a look, or '' where somebody else has the entry or it left the agenda
local time = redis.call('TIME')
local till = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
-- Cron and manual, and in the place of a look that is still owed: a claim that came to owe one is the same claim (due.lua).
local owing = {[0] = 6, [4] = 7}
local function owes(score)
  local of = math.floor((score - math.floor(score)) * 64) % 8
  return owing[of] and score + (owing[of] - of) / 64
end
local entries, moves, reply = {}, {}, {}
for i = 2, #ARGV, 2 do entries[#entries + 1] = ARGV[i] end
if not entries[1] then return reply end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(entries))
for i, entry in ipairs(entries) do
  local claimed, now = tonumber(ARGV[2 * i + 1]), scores[i] and tonumber(scores[i])
  if now and (now == claimed or now == owes(claimed)) then
    local bits = math.floor((now - math.floor(now)) * 64) % 32 + 32
    reply[i] = string.format('%.6f', till - 2e13 + bits / 64)
    moves[#moves + 1] = reply[i]
    moves[#moves + 1] = entry
  else
    reply[i] = ''
  end
end
if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end
return reply
