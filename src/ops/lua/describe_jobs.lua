-- Publishes descriptions of jobs. One of a worker that took charge later stays, unless no other worker has its file any
-- more. What is no description, or has a time in the future, is replaced.
-- KEYS  1 descriptions (hash, job to JSON with `since_ms` and `digest`)
-- ARGV  1 since when the publisher is in charge (ms)
--       2… at most 50 jobs, each followed by its description, and by the digests of the files that other workers have
--         of it, separated by spaces; `*` stands for any file
-- Returns a word for each job: `present` if the description is there, or one that differs only in its time; `written`;
-- or `other` if one of another file stays
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local since = tonumber(ARGV[1])
local function timeless(text) return (string.gsub(text, '"since_ms":%d+', '')) end
local function stays(present, files)
  local is_json, known = pcall(cjson.decode, present)
  if not is_json or type(known) ~= 'table' then return false end
  local later = tonumber(known.since_ms)
  if not later or later <= since or later > now then return false end
  local digest = type(known.digest) == 'string' and known.digest or ''
  return files == '*' or (digest ~= '' and string.find(files, digest, 1, true) ~= nil)
end
local words = {}
for i = 2, #ARGV, 3 do
  local job, text, files = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local present = redis.call('HGET', KEYS[1], job)
  if present == text then
    words[#words + 1] = 'present'
  elseif not present or not stays(present, timeless(present) == timeless(text) and '*' or files) then
    redis.call('HSET', KEYS[1], job, text)
    words[#words + 1] = 'written'
  else
    words[#words + 1] = timeless(present) == timeless(text) and 'present' or 'other'
  end
end
return words
