-- Takes a permit back, with the tokens reserved for it, and records the end of its request: counts failures, opens and
-- closes the breaker, blocks the upstream for the pause that it asked for, counts tokens. Signals the other gates if
-- that changes what they may do. A caller that gets an error or no reply tells the sum of its tokens again: they count
-- once, however often and late it is told.
--
-- KEYS    as in state.lua
-- ARGV[1] the permit's id
-- ARGV[2] 'answered' (closes the breaker), 'failed', 'busy', 'dropped' (nothing is known), or 'refused: ' and the
--         upstream's message, 300 characters at most (the account is refused: the breaker opens at once)
-- ARGV[3] for 'busy' and 'refused': the pause in milliseconds
-- ARGV[4] the id of the process's account
-- ARGV[5] tokens that the process has spent since it began
-- ARGV[6] those of them that it heard to be counted
-- ARGV[7] the token window in milliseconds
-- ARGV[8] tokens that may be spent in a window, 0 for no limit
-- ARGV[9] consecutive failures that open the breaker
-- ARGV[10] milliseconds for which it opens first
-- ARGV[11] milliseconds for which it opens at most
-- ARGV[12] the channel of the signal to other gates
-- ARGV[13] the signal
-- ARGV[14] tokens of the answer, to estimate later ones; 0 if they are not known
-- ARGV[15], … more permits to return, a hundred at most
-- returns { reason, microseconds, told, health } as of now: why nothing is admitted, and for how long. told is 80 or
--         100, the spent share of the budget in percent, if the caller is the first in this window to log it; else 0
-- Work: as `book`.

local id, ended = ARGV[1], ARGV[2]
local budget, limit = tonumber(ARGV[8]), tonumber(ARGV[9])
local changed = false

redis.pcall('ZREM', KEYS[2], id)
take_back(15)

-- While the breaker is open, only its probe is heard: what began before tells nothing new.
local open = get('open')
local said = string.match(ended, '^refused: (.*)')
local probe = open > 0 and redis.call('HGET', KEYS[1], 'probe') == id
if ended == 'busy' then
  local blocked = now + tonumber(ARGV[3])
  if blocked > pause() then
    set('blocked', blocked)
    set('blocked_at', now)
    changed = true
  end
end
if ended == 'answered' or ended == 'busy' then
  if probe then
    redis.call('HDEL', KEYS[1], 'open', 'open_for', 'said', 'probe', 'probe_until', 'failures')
    changed = true
  elseif open == 0 then
    redis.call('HDEL', KEYS[1], 'failures')
  end
elseif said then
  if probe or open == 0 then
    local long = math.min(math.max(get('open_for') * 2, tonumber(ARGV[10])), tonumber(ARGV[11]))
    long = math.max(long, tonumber(ARGV[3]))
    set('open_for', long)
    set('open', now + long)
    redis.call('HSET', KEYS[1], 'said', said)
    redis.call('HDEL', KEYS[1], 'probe', 'probe_until', 'failures')
    changed = true
  end
elseif ended == 'failed' then
  if probe then
    local long = math.min(get('open_for') * 2, tonumber(ARGV[11]))
    set('open_for', long)
    set('open', now + long)
    redis.call('HDEL', KEYS[1], 'said', 'probe', 'probe_until')
    changed = true
  elseif open == 0 then
    local failures = redis.call('HINCRBY', KEYS[1], 'failures', 1)
    if failures >= limit then
      set('open_for', tonumber(ARGV[10]))
      set('open', now + tonumber(ARGV[10]))
      changed = true
    elseif failures == 3 then
      -- From here on the others report their successes, too: failures of one worker alone are not the upstream's.
      changed = true
    end
  end
elseif probe then
  redis.call('HDEL', KEYS[1], 'probe', 'probe_until')
end

local answer = tonumber(ARGV[14])
if answer > 0 and budget > 0 then
  -- The longest of late: a longer one counts at once, and is forgotten by and by.
  local longest = get('answer')
  set('answer', math.max(answer, longest - math.ceil((longest - answer) / 32)))
  keep(tonumber(ARGV[7]))
end

if redis.call('EXISTS', KEYS[1]) == 1 then keep(0) end
-- Before the first command that fails if the budget's key is of another type.
if changed then redis.pcall('PUBLISH', ARGV[12], ARGV[13]) end
local used_up, told = false, 0
if budget > 0 then
  used_up, told = book(ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), budget)
end
redis.pcall('HDEL', KEYS[4], id)
if used_up and not changed then redis.pcall('PUBLISH', ARGV[12], ARGV[13]) end
local reason, wait, late = closed(budget)
return { reason, wait * 1000, math.max(told, late), health() }
