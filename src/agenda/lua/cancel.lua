-- An eviction: entries leave the agenda, but not where somebody asked for them since.
-- KEYS  1 agenda
-- ARGV  1 the eviction's time S (ms)  2… entries (at most 1,000)
-- What became urgent after S stays; so does what a warmup or somebody's demand has claimed: its fetch is yet to begin.
-- Returns how many left
local S = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local entries, out = {}, {}
for i = 2, #ARGV do entries[i - 1] = ARGV[i] end
if not entries[1] then return 0 end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(entries))
for i, entry in ipairs(entries) do
  local score = scores[i] and tonumber(scores[i])
  local stays
  if score and score < -2.5e13 then
    local since = math.floor(score) + (score < -3.5e13 and 4e13 or 3e13)
    -- Later than now: a retry, which goes.
    stays = since > S and since <= now
  elseif score and score < -1e13 then
    local bits = math.floor((score - math.floor(score)) * 64)
    -- Claimed, not taken; neither by an invalidation (1, 5) nor as its TTL comes to an end (2).
    stays = bits < 32 and bits % 8 ~= 1 and bits % 8 ~= 2 and bits % 8 ~= 5
  end
  if score and not stays then out[#out + 1] = entry end
end
if out[1] then redis.call('ZREM', KEYS[1], unpack(out)) end
return #out
