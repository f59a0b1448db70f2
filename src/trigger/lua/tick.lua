-- Claim a warmup that is due: whoever gets it expands it and then says when the next one is.
-- KEYS  1 schedules (sorted set, score = ms)  2 ticks under way (hash)
-- ARGV  1 how long the claim holds (ms)  2… the jobs that the caller knows; others are left to those who do
-- Returns {now, job, tick}, or {now, '', when the next is due (ms; -1 never)}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = {}
for i = 2, #ARGV do known[ARGV[i]] = true end
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  local job, at = all[i], tonumber(all[i + 1])
  if known[job] then
    if at > now then return {now, '', math.floor(at)} end
    local tick = tonumber(redis.call('HGET', KEYS[2], job) or at)
    redis.call('HSET', KEYS[2], job, string.format('%.0f', tick))
    redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[1])), job)
    return {now, job, tick}
  end
end
return {now, '', -1}
