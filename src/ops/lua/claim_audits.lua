-- Takes audits that are due: those that somebody asked for, and the next one of each job that audits at an interval.
-- KEYS  1 audits (hash): `JOB` to the number asked for, `JOB/next` to when the next one is due (ms)
-- ARGV  1 the most of a job  2 life of the hash (ms)  then pairs: a job, and its interval (ms), 0 if it has none
-- Returns pairs: a job, and how many were asked for; or a job with an interval, and 0
-- Each audit is given to one worker. Those of a worker that dies are lost.
local taken = {}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for n = 3, #ARGV, 2 do
  local job, interval = ARGV[n], tonumber(ARGV[n + 1])
  local asked = tonumber(redis.call('HGET', KEYS[1], job) or '') or 0
  if asked > 0 then
    local some = math.min(asked, tonumber(ARGV[1]))
    if redis.call('HINCRBY', KEYS[1], job, -some) <= 0 then redis.call('HDEL', KEYS[1], job) end
    taken[#taken + 1] = job
    taken[#taken + 1] = string.format('%.0f', some)
  elseif interval > 0 then
    local due = tonumber(redis.call('HGET', KEYS[1], job .. '/next') or '')
    -- One that is further away than an interval is by a clock that was set back since, or of an earlier job file.
    if not due or due <= now or due > now + interval then
      redis.call('HSET', KEYS[1], job .. '/next', string.format('%.0f', now + interval))
      redis.call('PEXPIRE', KEYS[1], ARGV[2])
      if due and due <= now then
        taken[#taken + 1] = job
        taken[#taken + 1] = '0'
      end
    end
  end
end
return taken
