-- Returns the last id that the inbox gave, even if its message is deleted. XINFO alone answers with whole messages.
-- KEYS  1 inbox (stream)
-- Returns {id ('0-0' if there is no stream), now (ms)}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then return {info[i + 1], now} end
end
return {'0-0', now}
