-- Admits one request to an upstream, at once or in a moment; or says why not, and for how long. One that is refused
-- leaves nothing behind but its gate's turn, and the note that the log is told of a spent budget.
--
-- KEYS    as in state.lua
-- ARGV[1] the permit's id
-- ARGV[2] milliseconds after which the permit comes back by itself; longer than any request
-- ARGV[3] permits at once, 0 for no limit
-- ARGV[4] rate limit: microseconds between two requests, 0 for no limit
-- ARGV[5] rate limit: microseconds by which requests may come early (the burst)
-- ARGV[6] milliseconds for which a place in the rate limit's future may be taken
-- ARGV[7] tokens that may be spent in a window, 0 for no limit
-- ARGV[8] the gate's id
-- ARGV[9] milliseconds that this gate has waited since it was admitted last
-- ARGV[10] tokens of the prompt, by estimate; 0 for a request that costs none
-- ARGV[11] tokens of the answer at most, 0 where nothing limits it
-- ARGV[12], … permits handed back, a hundred at most
-- returns { reason, microseconds, flag, health, expected }: reason '' is admission after so many microseconds, any
--         other a refusal for so many; flag is 1 where an admitted request tells whether the breaker closes, and in a
--         refusal as told in return_permit.lua; health as in state.lua; expected are the tokens that the answer will
--         cost, as far as answers of late and ARGV[11] tell
-- Work: what has expired of at most ARGV[3] permits, and, under a budget, the requests under way.
--
-- What a request may cost at most is held for it until it ends, so that requests under way do not pass the budget
-- together. An answer that nothing limits may be as long as the longest of late; while none is known, it may take the
-- whole budget. A request for which there is not enough left is admitted only if no other is under way. So an estimate
-- that is too high, or higher than the budget, keeps nobody waiting for ever, and what is left of a budget is used; it
-- is passed by one request.

local id, hold, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local interval, early, ahead = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local gate, waited = ARGV[8], tonumber(ARGV[9])
local budget, prompt, longest = tonumber(ARGV[7]), tonumber(ARGV[10]), tonumber(ARGV[11])

take_back(12)

cut('probe_until', hold + 1000)
local reason, wait, told = closed(budget)
if wait > 0 then return { reason, wait * 1000, told, health(), 0 } end

local turn = redis.call('HGET', KEYS[1], 'turn')
local others = turn and turn ~= gate and get('turn_until') > now

-- Refuses a request because a limit is reached. A gate that has waited long gets the next turn, so that a busy gate,
-- which takes again what it returned, starves no other gate.
local function full(why, tokens)
  if waited >= 500 and not others then
    redis.call('HSET', KEYS[1], 'turn', gate)
    set('turn_until', now + 600)
    set('turn_tokens', tokens)
    keep(0)
  end
  return { why, 0, 0, health(), 0 }
end

if most > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  -- Others may have asked for longer, but not for so long.
  local late = string.format('%.0f', now + 2 * hold + 1000)
  for _, permit in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. late, '+inf', 'LIMIT', 0, 100)) do
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + hold), permit)
  end
  cut('turn_until', 600)
  local free = most - redis.call('ZCARD', KEYS[2])
  if free <= 0 or (others and free == 1) then return full('concurrency', 0) end
end

local tokens, expected = 0, 0
if budget > 0 and prompt > 0 then
  local usual = get('answer')
  expected = (longest == 0 or usual > 0 and usual < longest) and usual or longest
  local answer = longest > 0 and longest or usual
  tokens = answer > 0 and prompt + answer or budget
  local held = reserved(2 * hold + ahead + 1000)
  local kept = others and get('turn_tokens') or 0
  if window() + held + kept + tokens > budget and (held > 0 or kept > 0) then return full('reserved', tokens) end
end
if turn == gate then redis.call('HDEL', KEYS[1], 'turn', 'turn_until', 'turn_tokens') end

local start = 0
if interval > 0 then
  local tat = get('tat')
  -- A place is taken a second ahead at most; one later than that is of a clock that ran ahead.
  local latest = now_us + early + math.max(ahead, 1000) * 1000 + interval
  if tat > latest then
    tat = latest
    set('tat', tat)
  end
  start = math.max(0, tat - early - now_us)
  if start > ahead * 1000 then return { 'rate', start, 0, health(), 0 } end
  set('tat', math.max(tat, now_us) + interval)
  keep(math.ceil((math.max(tat, now_us) + interval - now_us) / 1000) + 1000)
end

local back = now + hold + math.ceil(start / 1000)
if most > 0 then
  redis.call('ZADD', KEYS[2], string.format('%.0f', back), id)
  redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', now + 2 * hold + ahead))
end
if tokens > 0 then
  redis.call('HSET', KEYS[4], id, string.format('%.0f %.0f', tokens, back))
  redis.call('PEXPIREAT', KEYS[4], string.format('%.0f', now + 2 * hold + ahead))
end

local probe = 0
if get('open') > 0 then
  probe = 1
  redis.call('HSET', KEYS[1], 'probe', id)
  set('probe_until', back)
  keep(0)
end
return { '', start, probe, health(), expected }
