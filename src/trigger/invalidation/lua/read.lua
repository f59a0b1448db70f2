#!lua flags=allow-oom
-- Gives a reader of the inbox new messages, or those that other readers were given and did not finish for long, or
-- those that it was given itself and has not finished.
-- It reads one by one, so that at most one message is held beyond the bytes allowed. Of a message that is too long, it
-- returns only the length.
-- KEYS  1 inbox (stream)
-- ARGV  1 group  2 reader  3 the most messages  4 the bytes after which no more are given
--       5 the length of the longest message (bytes, names and values)
--       6 '' for new messages; 'own' for those that it was given; else the time (ms) for which messages of any
--         reader have been pending
--       7 the id from which those are read
-- Returns {the id from which to go on with those ('0-0' if none is left), {{id, its fields or its length}…}}
local given, bytes, cursor = {}, 0, ARGV[7]
local function give(entry)
  -- A message that was deleted meanwhile has no fields.
  if not (entry and entry[2]) then return end
  local length = 0
  for _, text in ipairs(entry[2]) do length = length + #text end
  bytes = bytes + length
  given[#given + 1] = {entry[1], length > tonumber(ARGV[5]) and length or entry[2]}
end
for _ = 1, tonumber(ARGV[3]) do
  if ARGV[6] == '' then
    local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
    if not read then break end
    give(read[1][2][1])
  elseif ARGV[6] == 'own' then
    local found = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], cursor)[1][2][1]
    cursor = found and found[1] or '0-0'
    if not found then break end
    give(found)
  else
    local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[6], cursor, 'COUNT', 1)
    cursor = claimed[1]
    give(claimed[2][1])
    if cursor == '0-0' then break end
  end
  if bytes >= tonumber(ARGV[4]) then break end
end
return {cursor, given}
