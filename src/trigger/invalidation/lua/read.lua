#!lua flags=allow-oom
-- Give a reader of the inbox what is there: new messages, or those that a reader was given and has not finished for
-- long. One by one, so that beside the bytes allowed no more than one message is held; of one that is too long, only its
-- length is told.
-- KEYS  1 inbox (stream)
-- ARGV  1 group  2 reader  3 messages at most  4 bytes after which no more are given
--       5 the longest message (bytes, names and values)
--       6 '' for new messages; else for how long others must have been in a reader's hands (ms)
--       7 the id from which those are looked for
-- Returns {the id from which to go on with those ('0-0': none is left), {{id, its fields or its length}…}}
local given, bytes, cursor = {}, 0, ARGV[7]
local function give(entry)
  -- What was deleted meanwhile has no fields.
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
  else
    local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[6], cursor, 'COUNT', 1)
    cursor = claimed[1]
    give(claimed[2][1])
    if cursor == '0-0' then break end
  end
  if bytes >= tonumber(ARGV[4]) then break end
end
return {cursor, given}
