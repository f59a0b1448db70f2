-- Claim what is due: urgent entries first, then those whose claim ran out, then the rest, oldest first.
-- A claimed entry stays on the agenda, due again when its claim runs out.
-- KEYS  1 agenda  2 since when the job is paused: then nothing is claimed
-- ARGV  1 at most so many (1,000 at most)  2 at most so many claimed or taken at once; twice as many where what is new is
--         urgent, which a backlog in hand therefore does not hold up, while a storm of it is held back all the same
--       3 how long the claim holds (ms)
-- Returns {now, when something is due next (ms; -1 never; at most now: there is more; -2 the job is paused), then for each entry:
--          entry, score while claimed, score before}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', KEYS[2]) == 1 then return {string.format('%.0f', now), '-2'} end
local room = tonumber(ARGV[1])
local till = now + tonumber(ARGV[3])
local reply = {string.format('%.0f', now), '-1'}
local function claim(from, to, urgent, most)
  if most <= 0 then return 0 end
  local found = redis.call('ZRANGEBYSCORE', KEYS[1], from, to, 'WITHSCORES', 'LIMIT', 0, most)
  local moves = {}
  for i = 1, #found, 2 do
    local old = tonumber(found[i + 1])
    local bits = math.floor((old - math.floor(old)) * 32) % 16
    if urgent then bits = bits % 8 + 8 end
    local score = string.format('%.5f', till - 2e13 + bits / 32)
    moves[i], moves[i + 1] = score, found[i]
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = score
    reply[#reply + 1] = found[i + 1]
  end
  if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end
  return #found / 2
end
local lapsed = string.format('%.0f', now + 1 - 2e13)
local held = redis.call('ZCOUNT', KEYS[1], lapsed, '(-1e13')
room = math.min(room, 2 * tonumber(ARGV[2]) - held)
room = room - claim('-inf', string.format('%.0f', now + 1 - 3e13), true, room)
room = room - claim('-2.5e13', '(' .. lapsed, false, room)
held = redis.call('ZCOUNT', KEYS[1], lapsed, '(-1e13')
claim('0', '(' .. string.format('%.0f', now + 1), false, math.min(room, tonumber(ARGV[2]) - held))
local lapse = redis.call('ZRANGEBYSCORE', KEYS[1], '-2.5e13', '(-1e13', 'WITHSCORES', 'LIMIT', 0, 1)
local later = redis.call('ZRANGEBYSCORE', KEYS[1], '0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local urgent = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(-2.5e13', 'WITHSCORES', 'LIMIT', 0, 1)
local nearest = math.huge
if lapse[2] then nearest = math.min(nearest, math.floor(tonumber(lapse[2])) + 2e13) end
if later[2] then nearest = math.min(nearest, math.floor(tonumber(later[2]))) end
if urgent[2] then nearest = math.min(nearest, math.floor(tonumber(urgent[2])) + 3e13) end
if nearest < math.huge then reply[2] = string.format('%.0f', nearest) end
return reply
