-- Admits a request if fewer than the limit were admitted within the period that ends now: an exact sliding window. The
-- log holds the time of each admission, in Redis's time, oldest first, and never more than the limit. A time in the
-- future is from before Redis's clock was set back; it counts as admitted now.
-- KEYS  1 log (list)
-- ARGV  1 limit  2 period (µs)
-- Returns {1 if admitted, requests that would still be admitted, µs until one is (0: now), µs until all are}
local limit, period = tonumber(ARGV[1]), tonumber(ARGV[2])
local ttl = string.format('%.0f', math.ceil(period / 1000) + 1)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local count = redis.call('LLEN', KEYS[1])
if count > 0 then
  local ahead = 0
  while ahead < count and tonumber(redis.call('LINDEX', KEYS[1], -1)) > now do
    redis.call('RPOP', KEYS[1])
    ahead = ahead + 1
  end
  for _ = 1, ahead do redis.call('RPUSH', KEYS[1], string.format('%.0f', now)) end
  -- Where all of them were ahead, the log is a new one, without a TTL.
  if ahead > 0 then redis.call('PEXPIRE', KEYS[1], ttl) end
  local past = now - period
  if tonumber(redis.call('LINDEX', KEYS[1], 0)) <= past then
    -- Binary search for the first admission within the period.
    local low, high = 0, count
    while low + 1 < high do
      local middle = math.floor((low + high) / 2)
      if tonumber(redis.call('LINDEX', KEYS[1], middle)) <= past then low = middle else high = middle end
    end
    redis.call('LPOP', KEYS[1], high)
    count = count - high
  end
end
local admitted = 0
if count < limit then
  redis.call('RPUSH', KEYS[1], string.format('%.0f', now))
  redis.call('PEXPIRE', KEYS[1], ttl)
  count = count + 1
  admitted = 1
end
local wait = 0
if count >= limit then wait = tonumber(redis.call('LINDEX', KEYS[1], 0)) + period - now end
local all = tonumber(redis.call('LINDEX', KEYS[1], -1)) + period - now
return {admitted, limit - count, wait, all}
