-- Adds the sums of a job's reported reads to its minute figures, once a minute, whichever worker comes first.
-- The hash also notes the sums and the time of the last call that did so, and since when reads are reported.
-- KEYS  1 reported reads (hash)  2 minute figures (stream)
-- ARGV  1 shortest time between two figures (ms)  2 time after which no worker was there (ms)  3 figures that are kept
--       4 life of both keys after the last report (ms)
-- Returns 1 if figures were added
-- A figure has the sums since `since`, not those of its minute. `gap` says that no worker was there before it: then it
-- is unknown when the reads since the figure before were made. Sums that went down, or a new hash, begin anew.
local found = redis.call('HMGET', KEYS[1], 'hits', 'misses', 'stale', 'rolled', 'rolled_ms')
if not (found[1] or found[2] or found[3]) then return 0 end
local sums = {}
for n = 1, 3 do sums[n] = math.max(0, math.floor(tonumber(found[n] or '') or 0)) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = tonumber(found[5] or '')
local elapsed = last and now - last
-- A clock that was set back is no reason to wait.
if elapsed and elapsed >= 0 and elapsed < tonumber(ARGV[1]) then return 0 end
local is_new, n = not elapsed, 0
for earlier in string.gmatch(found[4] or '', '%d+') do
  n = n + 1
  if sums[n] and sums[n] < tonumber(earlier) then is_new = true end
end
if is_new then
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'since', string.format('%.0f', now))
end
local text = string.format('%.0f %.0f %.0f', sums[1], sums[2], sums[3])
redis.call('HSET', KEYS[1], 'rolled', text, 'rolled_ms', string.format('%.0f', now))
if text == found[4] and not is_new then return 0 end
local figure = {KEYS[2], 'MAXLEN', ARGV[3], '*', 'sums', text}
if not is_new and elapsed > tonumber(ARGV[2]) then
  figure[#figure + 1] = 'gap'
  figure[#figure + 1] = '1'
end
redis.call('XADD', unpack(figure))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
