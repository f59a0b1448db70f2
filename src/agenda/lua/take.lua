-- Begin a task: its entries go from claimed to running, unless the agenda says otherwise by now.
-- score.lua stands before this.
-- KEYS  1 agenda
-- ARGV  1 for how long at most (ms)
--       2 the caller asks again, since it got no answer: the time within which its first call was carried out (ms; 0:
--         it is the first). What began to run within it, for the same reason, counts as taken by that call. It may
--         be another's after a further invalidation: then the lease lets one of them fetch
--       3… pairs: entry, score while claimed (500 pairs at most)
-- Returns for each pair the score while running, or '' where another worker has the entry or it left the agenda
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local till = now + tonumber(ARGV[1])
local since = till - tonumber(ARGV[2])
local entries, moves, reply = {}, {}, {}
for i = 3, #ARGV, 2 do entries[#entries + 1] = ARGV[i] end
if not entries[1] then return reply end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(entries))
for i, entry in ipairs(entries) do
  local claimed = tonumber(ARGV[2 * i + 2])
  reply[i] = ''
  if scores[i] then
    local _, _, trigger, priority = decode(claimed)
    local ends, state, has, had = decode(tonumber(scores[i]))
    if tonumber(scores[i]) == claimed then
      reply[i] = encode(till, 'running', trigger, priority)
      moves[#moves + 1] = reply[i]
      moves[#moves + 1] = entry
    elseif state == 'running' and since < till and ends >= since and has == trigger and had == priority then
      reply[i] = encode(ends, state, has, had)
    end
  end
end
if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end
return reply
