-- Claims a warmup that is due. The worker that gets it expands it and then sets the next tick (end_tick.lua).
-- KEYS  1 schedules (sorted set, score = ms)  2 claimed ticks (hash, job to tick)
-- ARGV  1 the time for which the claim holds (ms)  2… the jobs that the caller can warm up; it leaves others alone
-- Returns {now, job, tick, the time until which the claim holds},
-- or {now, '', the time of the next tick (ms; -1 if there is none), -1}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = {}
for i = 2, #ARGV do known[ARGV[i]] = true end
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  local job, at = all[i], tonumber(all[i + 1])
  if known[job] then
    if at > now then return {now, '', math.floor(at), -1} end
    local tick = tonumber(redis.call('HGET', KEYS[2], job) or at)
    redis.call('HSET', KEYS[2], job, string.format('%.0f', tick))
    redis.call('HDEL', KEYS[2], job .. '/state')
    local till = now + tonumber(ARGV[1])
    redis.call('ZADD', KEYS[1], string.format('%.0f', till), job)
    return {now, job, tick, till}
  end
end
return {now, '', -1, -1}
