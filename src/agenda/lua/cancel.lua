-- Take evicted entries off the agenda, except those that were asked for since the eviction.
-- score.lua stands before this.
-- KEYS  1 agenda
-- ARGV  1 the eviction's time (ms)  2… entries (at most 1,000)
-- An entry stays if it became urgent since then, or if a warmup or a demand has claimed it: its fetch has not begun.
-- Returns how many left
local evicted_at = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local entries, out = {}, {}
for i = 2, #ARGV do entries[i - 1] = ARGV[i] end
if not entries[1] then return 0 end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(entries))
for i, entry in ipairs(entries) do
  if scores[i] then
    local at, state, trigger = decode(tonumber(scores[i]))
    local stays = false
    if state == 'urgent' then
      -- Later than now: a retry, which goes.
      stays = at > evicted_at and at <= now
    elseif state == 'claimed' then
      -- Neither an invalidation (1) and its recheck (5) nor the end of the TTL (2).
      stays = trigger ~= 1 and trigger ~= 2 and trigger ~= 5
    end
    if not stays then out[#out + 1] = entry end
  end
end
if out[1] then redis.call('ZREM', KEYS[1], unpack(out)) end
return #out
