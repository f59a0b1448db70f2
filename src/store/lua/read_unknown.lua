-- Read the stamps of unknown tags: those that no entry had when they were invalidated.
-- KEYS  1 stamps of unknown tags (stamp_unknown.lua)
-- ARGV  1… tags
-- Returns for each tag the score of its stamp, or '0' if there is none
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local scores = redis.call('ZMSCORE', KEYS[1], '', unpack(ARGV))
for i, score in ipairs(scores) do
  if score and -tonumber(score) >= now + 1 then
    -- From a clock that ran ahead: as in tag.lua.
    scores[i] = string.format('%.1f', -now - (tonumber(score) % 1 == 0 and 0 or 0.5))
    redis.call('ZADD', KEYS[1], 'XX', scores[i], ARGV[i - 1] or '')
  end
end
local stamps = {}
for i = 1, #ARGV do stamps[i] = scores[i + 1] or scores[1] or '0' end
return stamps
