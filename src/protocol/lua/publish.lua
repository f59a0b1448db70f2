-- Adds a message to the inbox, or ('') only trims the inbox. Handled messages are deleted, so trimmed messages were not
-- handled: a gap record in the stream tells their number.
-- KEYS  1 inbox
-- ARGV  1 the message (JSON), or ''  2 messages kept at most  3 messages trimmed at once, and no more in one call
-- Returns the message's id, or ''
local spare = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[2])
if spare >= 0 then
  local trimmed = math.max(1, math.min(spare + tonumber(ARGV[3]) / 2, tonumber(ARGV[3])))
  local keep = redis.call('XLEN', KEYS[1]) - math.floor(trimmed)
  local gone = redis.call('XTRIM', KEYS[1], 'MAXLEN', string.format('%.0f', math.max(keep, 0)))
  redis.call('XADD', KEYS[1], '*', 'gap', gone)
end
if ARGV[1] == '' then return '' end
return redis.call('XADD', KEYS[1], '*', 'message', ARGV[1])
