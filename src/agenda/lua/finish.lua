-- End the warming of entries: each gets its next due time or leaves the agenda, unless it was made due meanwhile.
-- score.lua stands before this.
-- KEYS  1 agenda  2 dead letters  3 their reasons  4 the job's counters
-- ARGV  1 dead letters kept at most  2 the last outcome, for people ('' leaves it)
--       3 channel of signals  4 the signal to send if an entry is due before dispatchers would look by themselves
--       5 how many counters grow (20 at most), then so many pairs: name, by how much; the first count of all notes the
--       time (`since`, ms)
--       then for each entry (500 at most): entry, score while claimed or running, what, argument
--         'at'   ms: due at that time, as `expiry`
--         'recheck' ms: due at that time, as `recheck`
--         'in'   ms: due after that time, at least a millisecond, for the same trigger and with the same priority
--         'aside' ms: as 'in', with normal priority
--         'out'  '': it leaves
--         'dead' reason: it leaves for the dead letters
-- Returns how many were as the caller thought; an error where dead letters or counters hold a key of another type,
-- after all else is done: they stop no entry. A full Redis ends no entry that leaves for dead letters.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = 5 + 2 * tonumber(ARGV[5])
local done, soonest = 0, math.huge
local entries, moves, out, dead, alive = {}, {}, {}, {}, {}
for i = at + 1, #ARGV, 4 do
  entries[#entries + 1] = ARGV[i]
end
local scores = entries[1] and redis.call('ZMSCORE', KEYS[1], unpack(entries))
for n, entry in ipairs(entries) do
  local i = at + 4 * n - 3
  local held, what, arg = tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  if scores[n] and tonumber(scores[n]) == held then
    done = done + 1
    -- An entry that is on the agenda again is no dead letter, whatever comes of it.
    if what ~= 'dead' then alive[#alive + 1] = entry end
    local due
    if what == 'at' then
      due = encode(tonumber(arg), 'scheduled', 2)
      soonest = math.min(soonest, tonumber(arg))
    elseif what == 'recheck' then
      due = encode(tonumber(arg), 'scheduled', 5)
      soonest = math.min(soonest, tonumber(arg))
    elseif what == 'in' or what == 'aside' then
      local _, _, trigger, priority = decode(held)
      if what == 'aside' then priority = 0 end
      local at = now + math.max(tonumber(arg), 1)
      due = encode(at, priority > 0 and 'urgent' or 'scheduled', trigger, priority)
      soonest = math.min(soonest, at)
    end
    if due then
      moves[#moves + 1] = due
      moves[#moves + 1] = entry
    else
      out[#out + 1] = entry
      if what == 'dead' then dead[#dead + 1] = {entry, arg} end
    end
  end
end
if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end
if soonest < now + 5000 then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
local trouble
-- The reply of a command, or nothing where it fails.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  trouble = trouble or reply
end
for _, letter in ipairs(dead) do
  try('ZADD', KEYS[2], string.format('%.0f', now), letter[1])
  try('HSET', KEYS[3], letter[1], letter[2])
end
if trouble and string.find(trouble.err, '^OOM') then return trouble end
if out[1] then redis.call('ZREM', KEYS[1], unpack(out)) end
if alive[1] and redis.call('EXISTS', KEYS[2]) == 1 then
  try('ZREM', KEYS[2], unpack(alive))
  try('HDEL', KEYS[3], unpack(alive))
end
local spare = dead[1] and (try('ZCARD', KEYS[2]) or 0) - tonumber(ARGV[1]) or 0
if spare > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[2], math.min(spare, 500))
  for i = 1, #oldest, 2 do try('HDEL', KEYS[3], oldest[i]) end
end
for i = 6, at, 2 do
  if try('HINCRBY', KEYS[4], ARGV[i], ARGV[i + 1]) == tonumber(ARGV[i + 1]) then
    try('HSETNX', KEYS[4], 'since', string.format('%.0f', now))
  end
end
if ARGV[2] ~= '' then try('HSET', KEYS[4], 'last', ARGV[2]) end
return trouble or done
