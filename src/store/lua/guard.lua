-- The codec of a job's guard (src/store/guard.rs): stands before each script that reads or writes one.
-- It is a hash of numbers:
--   since, until       it holds removals back, or lets them through, from then to then (ms)
--   accepted           1: a person lets removals through until then
--   gone, of           as it tripped: removals within a minute, this one included; the job's entries
--   held               entries whose removal it holds back; for each there is a field, `=` and the entry's key, whose
--                      value is when it was last held back (ms); 1 by a worker of the previous build
--   restored           1: it was set up from the mark of an entry, so there may be others that it does not know yet
--   last               when it last held a removal back (ms)
--   minute             the minute that it counts in, since the epoch
--   count, before      removals in that minute, and in the one before
--   most, most_before  the most entries on the job's agenda in these two
local NUMBERS = {'since', 'until', 'accepted', 'gone', 'of', 'held', 'last', 'minute', 'count', 'before', 'most',
  'most_before', 'restored'}
-- Returns a guard as a table. What is no number, or none that can be, is 0.
local function read_guard(key)
  local guard, texts, numbers = {}, redis.call('HMGET', key, unpack(NUMBERS)), 0
  for i, name in ipairs(NUMBERS) do
    local number = tonumber(texts[i] or '') or 0
    guard[name] = number >= 0 and number < 1e15 and number or 0
    if texts[i] then numbers = numbers + 1 end
  end
  local fields = redis.call('HLEN', key) - numbers
  -- A worker of an earlier build counts entries without such a field.
  if guard.held > fields then guard.restored = 1 end
  guard.held = fields
  return guard
end
-- Writes a guard. It lives two minutes longer than it counts; one that has held removals back a day longer, so that
-- the marks that it gave entries set up no second one.
local function write_guard(key, guard, now)
  local words = {}
  for _, name in ipairs(NUMBERS) do
    words[#words + 1] = name
    words[#words + 1] = string.format('%.0f', guard[name])
  end
  redis.call('HSET', key, unpack(words))
  local longer = guard.since > 0 and 86520000 or 120000
  redis.call('PEXPIREAT', key, string.format('%.0f', math.max(guard['until'], now) + longer))
end
-- Returns true while a guard holds removals back or lets them through. One of the future is by a clock that ran ahead.
local function is_active(guard, now) return guard.since <= now and now < guard['until'] end
-- Forgets an entry whose removal is held back no more. With the last one the guard ends, a minute (ms) after it last
-- held a removal back: an upstream that wavers trips it no second time. A restored one lasts until its time ends.
-- Returns 1 if the guard knew the entry.
local function forget(key, guard, entry, now, minute)
  if redis.call('HDEL', key, '=' .. entry) == 0 then return 0 end
  guard.held = guard.held - 1
  if guard.held == 0 and guard.accepted == 0 and guard.restored == 0 then
    guard['until'] = math.min(guard['until'], math.max(now, guard.last + minute))
  end
  write_guard(key, guard, now)
  return 1
end
-- Returns Redis's clock (ms).
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
