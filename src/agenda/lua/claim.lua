-- Claim what is due: entries that were named by themselves first, then those that were named with many, then those whose
-- claim ran out, then the rest; the oldest first.
-- A claimed entry stays on the agenda, due again when its claim runs out.
-- KEYS  1 agenda  2 since when the job is paused: then nothing is claimed
-- ARGV  1 at most so many (1,000 at most)  2 at most so many claimed or taken at once; twice as many where what is new is
--         urgent, which a backlog in hand therefore does not hold up, while a storm of it is held back all the same
--         where it was named by itself, three times as many
--       3 how long the claim holds (ms)
-- What is claimed for later than an hour after any claim's end, or urgent in more than a quarter of an hour, was so by a clock
-- that ran ahead, and is due.
-- Returns {now, when something is due next (ms; -1 never; at most now: there is more; -2 the job is paused), then for each entry:
--          entry, score while claimed, score before}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', KEYS[2]) == 1 then return {string.format('%.0f', now), '-2'} end
local lowest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if not lowest[1] then return {string.format('%.0f', now), '-1'} end
local soonest = math.floor(tonumber(lowest[2]))
-- Nothing is urgent, claimed or taken: what lies lowest is due next.
if soonest > now then return {string.format('%.0f', now), string.format('%.0f', soonest)} end
local room = tonumber(ARGV[1])
local till = now + tonumber(ARGV[3])
local reply = {string.format('%.0f', now), '-1'}
local function claim(from, to, urgency, most)
  if most <= 0 then return 0 end
  local found = redis.call('ZRANGEBYSCORE', KEYS[1], from, to, 'WITHSCORES', 'LIMIT', 0, most)
  local moves = {}
  for i = 1, #found, 2 do
    local old = tonumber(found[i + 1])
    local bits = math.floor((old - math.floor(old)) * 64) % 32
    if urgency then bits = bits % 8 + 8 * urgency end
    local score = string.format('%.6f', till - 2e13 + bits / 64)
    moves[i], moves[i + 1] = score, found[i]
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = score
    reply[#reply + 1] = found[i + 1]
  end
  if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end
  return #found / 2
end
local lapsed = string.format('%.0f', now + 1 - 2e13)
local cap = tonumber(ARGV[2])
local future = now + tonumber(ARGV[3]) + 3600000
local held = redis.call('ZCOUNT', KEYS[1], lapsed, string.format('%.0f', future - 2e13))
local function claimed(from, to, urgency, times)
  local count = claim(from, to, urgency, math.min(room, times * cap - held))
  room, held = room - count, held + count
end
claimed('-inf', string.format('%.0f', now + 1 - 4e13), 2, 3)
claimed('-3.5e13', string.format('%.0f', now + 1 - 3e13), 1, 2)
claimed(string.format('(%.0f', now + 900000 - 4e13), '(-3.5e13', 2, 3)
claimed(string.format('(%.0f', now + 900000 - 3e13), '(-2.5e13', 1, 2)
claimed('-2.5e13', '(' .. lapsed, nil, 2)
claimed(string.format('(%.0f', future - 2e13), '(-1e13', nil, 2)
claimed('0', '(' .. string.format('%.0f', now + 1), nil, 1)
local nearest = math.huge
for _, band in ipairs({{'-inf', '(-3.5e13', 4e13}, {'-3.5e13', '(-2.5e13', 3e13}, {'-2.5e13', '(-1e13', 2e13}, {'0', '+inf', 0}}) do
  local first = redis.call('ZRANGEBYSCORE', KEYS[1], band[1], band[2], 'WITHSCORES', 'LIMIT', 0, 1)
  if first[2] then nearest = math.min(nearest, math.floor(tonumber(first[2])) + band[3]) end
end
if nearest < math.huge then reply[2] = string.format('%.0f', nearest) end
return reply
