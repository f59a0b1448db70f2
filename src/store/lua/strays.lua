-- Read the stamps of tags that no entry had when they were invalidated.
-- KEYS  1 stamps of strays (stray.lua)
-- ARGV  1… tags
-- Returns for each its stamp's score, or '0' where there is none
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local scores = redis.call('ZMSCORE', KEYS[1], '', unpack(ARGV))
local function stamp(score)
  -- From a clock that ran ahead: see tag.lua.
  if not score or -tonumber(score) > now + 1000 then return '0' end
  return score
end
local stamps = {}
for i = 1, #ARGV do stamps[i] = stamp(scores[i + 1] or scores[1]) end
return stamps
