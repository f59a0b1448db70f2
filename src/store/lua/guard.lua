-- The codec of a job's guard (src/store/guard.rs): stands before each script that reads or writes one.
-- It is a hash of numbers:
--   since, until       it holds removals back, or lets them through, from then to then (ms)
--   accepted           1: a person lets removals through until then
--   gone, of           as it tripped: removals within a minute, this one included; the job's entries
--   held               entries whose removal it holds back
--   last               when it last held a removal back (ms)
--   minute             the minute that it counts in, since the epoch
--   count, before      removals in that minute, and in the one before
--   most, most_before  the most entries on the job's agenda in these two
local NUMBERS = {'since', 'until', 'accepted', 'gone', 'of', 'held', 'last', 'minute', 'count', 'before', 'most',
  'most_before'}
-- Returns a guard as a table. What is no number, or none that can be, is 0.
local function read_guard(key)
  local guard, texts = {}, redis.call('HMGET', key, unpack(NUMBERS))
  for i, name in ipairs(NUMBERS) do
    local number = tonumber(texts[i] or '') or 0
    guard[name] = number >= 0 and number < 1e15 and number or 0
  end
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
-- Returns Redis's clock (ms).
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
