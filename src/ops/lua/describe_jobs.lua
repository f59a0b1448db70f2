-- Publishes descriptions of jobs, except those of jobs that a worker described that took charge later. What is no
-- description, or has a time in the future, is replaced.
-- KEYS  1 descriptions (hash, job to JSON with `since_ms`)
-- ARGV  1 since when the publisher is in charge (ms)  2… at most 50 jobs, each followed by its description
-- Returns the jobs whose descriptions are now the publisher's
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = {}
for i = 2, #ARGV, 2 do
  local job, text = ARGV[i], ARGV[i + 1]
  local present = redis.call('HGET', KEYS[1], job)
  local since
  if present and present ~= text then
    local is_json, known = pcall(cjson.decode, present)
    since = is_json and type(known) == 'table' and tonumber(known.since_ms)
  end
  if not (since and since > tonumber(ARGV[1]) and since <= now) then
    if present ~= text then redis.call('HSET', KEYS[1], job, text) end
    taken[#taken + 1] = job
  end
end
return taken
