-- The clock of a job's decayed counts, a prelude of fold.lua and top.lua: the number of half-lives since it started. A
-- changed half-life applies from now on, so that no count needs to change. Fields of the hash: at (ms), passed
-- (half-lives by then), half (the half-life since, ms)
local function passed(key, now, half)
  local clock = redis.call('HMGET', key, 'at', 'passed', 'half')
  local at, before, old = tonumber(clock[1] or nil), tonumber(clock[2] or nil), tonumber(clock[3] or nil)
  if at and before and old and old > 0 then
    before = before + (now - at) / old
    if old == half then return before end
  else
    before = 0
  end
  redis.call('HSET', key, 'at', string.format('%.0f', now), 'passed', string.format('%.17g', before),
    'half', string.format('%.0f', half))
  return before
end
