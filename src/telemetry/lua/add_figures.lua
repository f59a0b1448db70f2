-- Adds counts to the figures of a minute.
-- KEYS  1 figures (hash)
-- ARGV  1 age of the counts (ms)  2 hours that are kept  3 life of the key (ms)  4… pairs: a name, and its count
-- Returns the minute (since the epoch)
-- A field has the figures of an hour, `HOUR MINUTE:NAME=COUNT,NAME=COUNT MINUTE:…`, where HOUR is since the epoch. The
-- name of the field is HOUR modulo the hours that are kept, so an hour replaces the one that is too old. The names of
-- counts are of a closed set, which bounds the text.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local minute = math.floor((now - tonumber(ARGV[1])) / 60000)
local hour = string.format('%.0f', math.floor(minute / 60))
local field = string.format('%.0f', tonumber(hour) % tonumber(ARGV[2]))
local text = redis.call('HGET', KEYS[1], field) or ''
if string.match(text, '^%d+') ~= hour then text = hour end
local place = string.format(' %.0f:', minute % 60)
local from, to, figures = string.find(text, place .. '([^ ]*)')
local counts, names = {}, {}
local function add(name, count)
  if not counts[name] then names[#names + 1] = name end
  counts[name] = (counts[name] or 0) + tonumber(count)
end
for name, count in string.gmatch(figures or '', '(%w+)=(%d+)') do add(name, count) end
for n = 4, #ARGV, 2 do add(ARGV[n], ARGV[n + 1]) end
for n, name in ipairs(names) do names[n] = string.format('%s=%.0f', name, counts[name]) end
figures = place .. table.concat(names, ',')
if from then
  text = string.sub(text, 1, from - 1) .. figures .. string.sub(text, to + 1)
else
  text = text .. figures
end
redis.call('HSET', KEYS[1], field, text)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return minute
