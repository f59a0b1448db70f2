-- Acquires a free lock and issues a number. Acquiring it again with the same token keeps the number. Numbers grow: they
-- are Redis's time in µs, or the last number plus one if the clock stood still or was set back.
-- KEYS  1 lock  2 the last number
-- ARGV  1 token  2 TTL of the lock (ms)  3 TTL of the number (ms)
-- Returns {number, as text} | {'', ms until it ends}
local holder, number = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%d+)$')
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
if holder and holder ~= ARGV[1] then
  -- Acquired in the future: Redis's clock was set back, so the lock would end too late. A live holder renews it.
  if tonumber(number) > now_us then
    redis.call('PEXPIRE', KEYS[1], string.format('%.0f', 2 * tonumber(ARGV[2])), 'LT')
  end
  return {'', redis.call('PTTL', KEYS[1])}
end
if not holder then
  local last = tonumber(redis.call('GET', KEYS[2]) or 0)
  number = string.format('%.0f', math.max(now_us, last + 1))
  redis.call('SET', KEYS[2], number, 'PX', ARGV[3])
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. number, 'PX', ARGV[2])
return {number}
