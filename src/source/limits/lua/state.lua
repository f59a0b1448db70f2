-- What the scripts on an upstream's limits share; it stands before each of them.
--
-- KEYS[1] hash: the state. tat: theoretical arrival time of the rate limit (GCRA), in microseconds; blocked: the
--         upstream asked to be left alone until then; blocked_at: when it did; failures: consecutive; open: the
--         breaker's next probe is due then; open_for: how long it was opened for; said: the upstream's words when
--         it refused the account, where it is open for that; probe, probe_until: the permit that probes, and until
--         when it is waited for; turn, turn_until: the gate that has waited longest for a free permit, and until when
--         it is believed to be there; turn_tokens: the tokens that it waits for; answer: the tokens of the longest
--         answers of late.
--         In milliseconds where nothing else is said.
-- KEYS[2] sorted set: the permits in use, score = when they come back by themselves, in milliseconds.
-- KEYS[3] hash: the window of the token budget. tokens: spent in it; ends: when it ends; long: how long it is at most;
--         told_80: the highest budget of which the log was told that 80 % are spent; told_100: the budgets of which it
--         was told that all is spent, with spaces in between, 0 for none. So each is told of once, whichever budgets
--         reloads bring, and one that is lowered below what is spent at once. Earlier builds have the highest of these
--         alone, or `told` in their place, the share in percent: workers of both builds may both tell. It has
--         no TTL: what has one is what Redis evicts under `volatile-*`, and the fleet would spend its budget once more.
--         One that is over counts as none, and inspect.lua deletes these fields but for `ends` and `long`. Tokens are
--         counted by one command, so that a script which breaks off leaves the old window or the new one.
--         process:<id>: by the id of a process's account, the counted sum of its tokens since it began, over all
--         windows, and when it last grew. These outlive the window by an hour, for commands that come late; then
--         inspect.lua deletes the hash. That of an earlier build deletes it when the window ends: while workers of both
--         builds run, a late command may count tokens twice.
-- KEYS[4] hash: the tokens that requests under way may still cost. permit's id = tokens, and until when they are held,
--         in milliseconds. They belong to no window: a request counts in the one in which it ends.
-- All in one slot: the upstream's name is the hash tag. Times are Redis's.

local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now = math.floor(now_us / 1000)

local function get(field)
  return tonumber(redis.call('HGET', KEYS[1], field) or '0') or 0
end

-- Numbers are written whole: Lua itself would shorten them to 14 digits.
local function set(field, number)
  redis.call('HSET', KEYS[1], field, string.format('%.0f', number))
end

-- The state outlives what it says, and disappears when nobody asks the upstream any more.
local function keep(ms)
  local wanted = math.max(7200000, ms)
  if redis.call('PTTL', KEYS[1]) < wanted then
    redis.call('PEXPIRE', KEYS[1], string.format('%.0f', wanted))
  end
end

-- No time lies further ahead than this (ms), unless Redis's clock was set back since it was noted.
local function cut(field, longest)
  if get(field) > now + longest then set(field, now + longest) end
end

-- The tokens spent in the present window, and for how many more milliseconds it lasts; 0 and 0 where none is.
local function window()
  local known = redis.call('HMGET', KEYS[3], 'tokens', 'ends', 'long')
  local left, long = (tonumber(known[2]) or 0) - now, tonumber(known[3])
  if left <= 0 or not known[1] then return 0, 0 end
  if long and left > long then
    -- Redis's clock was set back.
    left = long
    redis.call('HSET', KEYS[3], 'ends', string.format('%.0f', now + long))
  end
  return tonumber(known[1]) or 0, left
end

-- The tokens that requests under way may still cost. Forgets those whose time has run out. None are held for longer
-- than this (ms), unless Redis's clock was set back since.
local function reserved(longest)
  local known, sum, over = redis.pcall('HGETALL', KEYS[4]), 0, {}
  -- A stranger's key stands there, and nothing can be held.
  if known.err then return 0 end
  for i = 1, #known, 2 do
    local tokens, till = string.match(known[i + 1], '^(%d+) (%d+)$')
    if till and tonumber(till) > now then
      sum = sum + tonumber(tokens)
      if tonumber(till) > now + longest then
        redis.call('HSET', KEYS[4], known[i], string.format('%s %.0f', tokens, now + longest))
      end
    elseif #over < 1000 then
      over[#over + 1] = known[i]
    end
  end
  if #over > 0 then redis.call('HDEL', KEYS[4], unpack(over)) end
  return sum
end

-- Whether a budget is among those of told_100 (text).
local function is_told(told_of, budget)
  return string.find(' ' .. told_of .. ' ', string.format(' %.0f ', budget), 1, true) ~= nil
end

-- Returns told_100 with a budget more. So many reloads in one window are rare that all others are then forgotten.
local function with_told(told_of, budget)
  local told = string.format('%.0f', budget)
  return (told_of == '0' or #told_of > 500) and told or told_of .. ' ' .. told
end

-- Forgets the processes whose sums last grew more than an hour ago, a thousand at most: a command sent before its
-- last growth is an hour old, and none is carried out so late. Work: all processes of the hash.
local function forget()
  local known, over = redis.call('HGETALL', KEYS[3]), {}
  for i = 1, #known, 2 do
    local at = string.match(known[i], '^process:') and string.match(known[i + 1], '^%d+ (%d+)$')
    -- Or Redis's clock was set back.
    if at and math.abs(now - tonumber(at)) > 3600000 and #over < 1000 then over[#over + 1] = known[i] end
  end
  if #over > 0 then redis.call('HDEL', KEYS[3], unpack(over)) end
end

-- Counts the tokens of a process that are not counted yet: in the present window, or in one of `per` milliseconds that
-- begins. `spent_in_all` is their sum since the process began; `heard` is the sum that a reply told it to be counted.
-- So a command that comes late, twice, or after one that was sent later counts nothing twice. Tokens whose count Redis
-- lost (a flush, a failover, a restart from a snapshot) stay lost, unless the process did not hear of the count.
-- Returns whether the tokens use the budget up, and 80 or 100 where the caller has to say that so many percent are
-- spent, else 0. Work: constant; for a process that the hash does not know, as `forget`.
local function book(account, spent_in_all, heard, per, budget)
  -- Without a command, which would fail if the key is of another type.
  if spent_in_all <= heard then return false, 0 end
  local field = 'process:' .. account
  local known = redis.call('HMGET', KEYS[3], 'tokens', 'ends', 'told_80', 'told_100', field)
  local before, ends = tonumber(known[1]) or 0, tonumber(known[2]) or 0
  local most, told_of = tonumber(known[3]) or 0, known[4] or '0'
  local counted = tonumber(string.match(known[5] or '', '^%d+')) or 0
  local tokens = spent_in_all - math.max(counted, heard)
  if tokens <= 0 then return false, 0 end
  if not known[5] then forget() end
  if ends <= now or not known[1] then before, ends, most, told_of = 0, now + per, 0, '0' end
  -- Else Redis's clock was set back.
  ends = math.min(ends, now + per)
  local spent = before + tokens
  local told = 0
  if spent >= budget and not is_told(told_of, budget) then
    told, told_of = 100, with_told(told_of, budget)
  elseif spent < budget and spent >= budget * 0.8 and budget > most then
    told, most = 80, budget
  end
  redis.call('HSET', KEYS[3], 'tokens', string.format('%.0f', spent), 'ends', string.format('%.0f', ends),
    'long', string.format('%.0f', per), 'told_80', string.format('%.0f', most), 'told_100', told_of,
    field, string.format('%.0f %.0f', spent_in_all, now))
  return before < budget and spent >= budget, told
end

-- Returns 100 where the caller has to say that the budget is spent, since nobody has said so in this window, else 0.
-- The budget was lowered below what is spent. Where that cannot be noted, a later caller says it.
local function tell_late(budget)
  local told_of = redis.call('HGET', KEYS[3], 'told_100') or '0'
  if is_told(told_of, budget) then return 0 end
  local noted = redis.pcall('HSET', KEYS[3], 'told_100', with_told(told_of, budget))
  return type(noted) == 'number' and 100 or 0
end

-- Until when the upstream asked to be left alone. If Redis's clock was set back since, the pause that it asked for
-- begins anew. A worker of the previous version notes no `blocked_at`: then an hour is the longest.
local function pause()
  local asked_at = get('blocked_at')
  if asked_at > now and get('blocked') > asked_at then
    set('blocked', now + get('blocked') - asked_at)
    set('blocked_at', now)
  end
  cut('blocked', 3600000)
  return get('blocked')
end

-- Why nothing at all is admitted now, and for how many more milliseconds; '' and 0 where it is not so. A breaker that
-- is open because the account is refused is 'refused: ' and what the upstream said. The third is as of tell_late.
local function closed(budget)
  local reason, wait = '', 0
  if get('open') > 0 then cut('open', get('open_for')) end
  local blocked = pause() - now
  if blocked > wait then reason, wait = 'retry-after', blocked end
  local open = get('open')
  if open > 0 then
    local said = redis.call('HGET', KEYS[1], 'said')
    local why = said and 'refused: ' .. said or 'breaker'
    if open - now > wait then reason, wait = why, open - now end
    local probing = get('probe_until') - now
    if open <= now and probing > wait then reason, wait = why, math.min(probing, 1000) end
  end
  local tokens, left = window()
  local told = 0
  if budget > 0 and tokens >= budget and left > wait then reason, wait, told = 'tokens', left, tell_late(budget) end
  return reason, wait, told
end

-- 0: all is well; 1: there were failures just now; 2: the breaker is not closed; 3: nor is it, and the account is
-- refused.
local function health()
  if get('open') > 0 then return redis.call('HEXISTS', KEYS[1], 'said') == 1 and 3 or 2 end
  if get('failures') > 0 then return 1 end
  return 0
end

-- Takes back permits that nobody uses any more: the ids in ARGV from `first` on. A stranger's key in the place of the
-- permits must not keep tokens from being counted.
local function take_back(first)
  if #ARGV < first then return end
  redis.pcall('HDEL', KEYS[4], unpack(ARGV, first))
  redis.pcall('ZREM', KEYS[2], unpack(ARGV, first))
  local probe = redis.call('HGET', KEYS[1], 'probe')
  for i = first, #ARGV do
    if ARGV[i] == probe then redis.call('HDEL', KEYS[1], 'probe', 'probe_until') end
  end
end
