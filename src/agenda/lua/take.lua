-- Begin a task: its entries go from claimed to taken, unless the agenda says otherwise by now.
-- KEYS  1 agenda
-- ARGV  1 for how long at most (ms)  2… pairs: entry, score while claimed (500 pairs at most)
-- Returns for each pair the score while taken, or '' where somebody else has the entry or it left the agenda
local time = redis.call('TIME')
local till = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
local reply = {}
for i = 2, #ARGV, 2 do
  local now = redis.call('ZSCORE', KEYS[1], ARGV[i])
  local claimed = tonumber(ARGV[i + 1])
  if now and tonumber(now) == claimed then
    local bits = math.floor((claimed - math.floor(claimed)) * 32) % 16 + 16
    local score = string.format('%.5f', till - 2e13 + bits / 32)
    redis.call('ZADD', KEYS[1], score, ARGV[i])
    reply[#reply + 1] = score
  else
    reply[#reply + 1] = ''
  end
end
return reply
