-- Adds reads to a job's decayed counts, in forward-decay form (after the prelude half_lives.lua). The score of an entry
-- is log2 of the sum over its reads of 2^(half-lives passed then). Scores of different times are therefore comparable,
-- and no score needs to decay later.
-- KEYS  1 counts (sorted set)  2 clock (hash)
-- ARGV  1 half-life (ms)  2 entries kept at most  3 'add' reads; 'report' the same, and remember when an API did;
--         'least' a count becomes at least so much
--       4… pairs: entry, how many (above 0; 250 pairs at most)
-- Returns the number of counted entries
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local tick = passed(KEYS[2], now, tonumber(ARGV[1]))
local how = ARGV[3]
if how == 'report' then redis.call('HSET', KEYS[2], 'reported', string.format('%.0f', now)) end
local ln2 = math.log(2)
local entries, moves = {}, {}
for i = 4, #ARGV, 2 do entries[#entries + 1] = ARGV[i] end
if entries[1] then
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(entries))
  for i, entry in ipairs(entries) do
    local score = tick + math.log(tonumber(ARGV[2 * i + 3])) / ln2
    local old = scores[i] and tonumber(scores[i])
    if old then
      local high, low = math.max(old, score), math.min(old, score)
      score = how == 'least' and high or high + math.log(1 + 2 ^ (low - high)) / ln2
    end
    moves[#moves + 1] = string.format('%.17g', score)
    moves[#moves + 1] = entry
  end
  redis.call('ZADD', KEYS[1], unpack(moves))
end
-- A thousand reads ten half-lives ago count less than one now.
local faded = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.17g', tick - 10), 'LIMIT', 0, 500)
if faded[1] then redis.call('ZREM', KEYS[1], unpack(faded)) end
local count = redis.call('ZCARD', KEYS[1])
local spare = math.min(count - tonumber(ARGV[2]), 1000)
if spare > 0 then count = count - redis.call('ZREMRANGEBYRANK', KEYS[1], 0, spare - 1) end
return count
