-- Adds the sums of a job's reported reads to its minute figures, once a minute, whichever worker comes first.
-- KEYS  1 reported reads (hash)  2 minute figures (stream)
-- ARGV  1 shortest time between two figures (ms)  2 time after which no worker was there (ms)  3 figures that are kept
--       4 life of both keys after the last figure (ms)
-- Returns 1 if a figure was added, else 0; and what was refused: pairs of a field and its value, which is now 0
-- The hash has the beginning: the time (`since`) and the sums at that time (`base`); reads before it were made nobody
-- knows when. `rolled` and `rolled_ms` are the sums and the time of the last call. A figure has the sums at its time,
-- which is its id: never XADD's own `*`, because that does not follow a clock that is set back. `gap` says that no
-- worker was there before it: then it is unknown when the reads since the figure before were made.
-- A new hash, sums that went down, refused values and a clock that was set back are a beginning.
local found = redis.call('HMGET', KEYS[1], 'hits', 'misses', 'stale', 'rolled', 'rolled_ms', 'base')
if not (found[1] or found[2] or found[3]) then return {0, {}} end
redis.call('XLEN', KEYS[2]) -- Fails before anything is written, if the key is of another type.
local sums, refused = {}, {}
for n, field in ipairs({'hits', 'misses', 'stale'}) do
  local text = found[n] or '0'
  if #text > 15 or not string.find(text, '^%d+$') then
    redis.call('HSET', KEYS[1], field, 0)
    refused[#refused + 1] = field
    refused[#refused + 1] = string.sub(text, 1, 40)
    text = '0'
  end
  sums[n] = tonumber(text)
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = tonumber(found[5] or '')
local is_new, n = not (last and found[6]) or #refused > 0, 0
for earlier in string.gmatch(found[4] or '', '%d+') do
  n = n + 1
  if sums[n] and sums[n] < tonumber(earlier) then is_new = true end
end
local elapsed = last and now - last or 0
-- Clocks of masters differ a little: a time shortly before the last one is no clock that was set back.
if not is_new and math.abs(elapsed) < tonumber(ARGV[1]) then return {0, refused} end
is_new = is_new or elapsed < 0
local text = string.format('%.0f %.0f %.0f', unpack(sums))
local is_same = text == found[4] and not is_new
if not is_same then
  local figure = {KEYS[2], 'MAXLEN', ARGV[3], string.format('%.0f-0', now), 'sums', text}
  if not is_new and elapsed > tonumber(ARGV[2]) then
    figure[#figure + 1] = 'gap'
    figure[#figure + 1] = '1'
  end
  if not is_new then
    -- It is refused if the stream has had a later id.
    local added = redis.pcall('XADD', unpack(figure))
    is_new = type(added) == 'table' and added.err ~= nil
  end
  if is_new then
    redis.call('DEL', KEYS[2])
    redis.call('HSET', KEYS[1], 'since', string.format('%.0f', now), 'base', text)
    redis.call('XADD', unpack(figure, 1, 6))
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
redis.call('HSET', KEYS[1], 'rolled', text, 'rolled_ms', string.format('%.0f', now))
return {is_same and 0 or 1, refused}
