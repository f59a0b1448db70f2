-- Claim due entries: high priority first, then bulk, then other entries whose claim ran out, then scheduled ones; the
-- oldest first. A claimed entry stays on the agenda, due again when its claim runs out. If that entry has high
-- priority, it goes with those, unless a thousand older claims ran out as well. score.lua stands before this.
-- If the caller got no answer to the call before, nobody may know what that claimed. Calls are numbered, and Redis
-- keeps the last one that claimed something: what is claimed until the same end is claimed anew, and nothing else.
-- Another task may hold such an entry, of the same millisecond or on the queue after all: only one can take it.
-- KEYS  1 agenda  2 since when the job is paused: then nothing is claimed  3 the caller's last call (it expires)
-- ARGV  1 at most so many (1,000 at most); anew up to 1,000
--       2 at most so many claimed or running at once; for bulk entries and lapsed claims twice, for high priority three
--         times as many: scheduled work in flight does not hold up urgent entries, and a storm of those is bounded
--       3 how long the claim holds (ms)
--       4 the number of this call  5 of the last one that was answered and whose entries are on the queue
-- An entry is due as well if it is claimed for later than a minute after the end of such a claim, held for later than
-- an hour after it, or urgent in more than a quarter of an hour: a clock that ran ahead set that time. (Or a caller
-- whose claims hold for longer than that: its tasks find nothing to take.)
-- Returns {now, when something is due next (ms; -1 never; at most now: there is more; -2 the job is paused),
--          then for each entry: entry, score while claimed, score before}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', KEYS[2]) == 1 then return {string.format('%.0f', now), '-2'} end
local lowest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if not lowest[1] then return {string.format('%.0f', now), '-1'} end
local soonest = math.floor(tonumber(lowest[2]))
-- Nothing is urgent, claimed or running: the lowest score is due next.
if soonest > now then return {string.format('%.0f', now), string.format('%.0f', soonest)} end
local room = tonumber(ARGV[1])
local till = now + tonumber(ARGV[3])
local reply = {string.format('%.0f', now), '-1'}
-- Returns the first of a list of entries and scores that are in this state and have this priority, at most so many.
local function only(found, most, state, priority)
  local some = {}
  for i = 1, #found, 2 do
    local _, is, _, has = decode(tonumber(found[i + 1]))
    if is == (state or is) and has == (priority or has) and #some < 2 * most then
      some[#some + 1], some[#some + 2] = found[i], found[i + 1]
    end
  end
  return some
end
local function claim(from, to, most, state, priority)
  if most <= 0 then return 0 end
  local some = state or priority
  local found = redis.call('ZRANGEBYSCORE', KEYS[1], from, to, 'WITHSCORES', 'LIMIT', 0, some and 1000 or most)
  if some then found = only(found, most, state, priority) end
  local moves = {}
  for i = 1, #found, 2 do
    local _, _, trigger, had = decode(tonumber(found[i + 1]))
    local score = encode(till, 'claimed', trigger, had)
    moves[i], moves[i + 1] = score, found[i]
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = score
    reply[#reply + 1] = found[i + 1]
  end
  if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end
  return #found / 2
end
local last = redis.pcall('GET', KEYS[3])
local ended, number = string.match(type(last) == 'string' and last or '', '^(%d+) (.+)$')
if number and number ~= ARGV[5] then
  local anew = claim(edge(tonumber(ended), HELD), '(' .. edge(tonumber(ended) + 1, HELD), 1000, 'claimed')
  if anew > 0 then room = 0 end
end
local lapsed = edge(now + 1, HELD)
local cap = tonumber(ARGV[2])
local far, future = edge(till + 60001, HELD), edge(till + 3600001, HELD)
local held = redis.call('ZCOUNT', KEYS[1], lapsed, '(' .. future)
local function claimed(from, to, times, state, priority)
  local count = claim(from, to, math.min(room, times * cap - held), state, priority)
  room, held = room - count, held + count
end
claimed('-inf', '(' .. edge(now + 1, HIGH), 3)
claimed(BULK_END, '(' .. lapsed, 3, nil, 2)
claimed(HIGH_END, '(' .. edge(now + 1, BULK), 2)
claimed('(' .. edge(now + 900000, HIGH), '(' .. HIGH_END, 3)
claimed('(' .. edge(now + 900000, BULK), '(' .. BULK_END, 2)
claimed(BULK_END, '(' .. lapsed, 2)
claimed(far, '(' .. future, 2, 'claimed')
claimed(future, '(' .. HELD_END, 2)
claimed('0', '(' .. edge(now + 1, SCHEDULED), 1)
local nearest = math.huge
for _, band in ipairs({{'-inf', HIGH_END}, {HIGH_END, BULK_END}, {BULK_END, HELD_END}, {'0', '+inf'}}) do
  local first = redis.call('ZRANGEBYSCORE', KEYS[1], band[1], '(' .. band[2], 'WITHSCORES', 'LIMIT', 0, 1)
  if first[2] then nearest = math.min(nearest, (decode(tonumber(first[2])))) end
end
if nearest < math.huge then reply[2] = string.format('%.0f', nearest) end
if reply[3] then redis.call('SET', KEYS[3], string.format('%.0f', till) .. ' ' .. ARGV[4], 'PX', ARGV[3]) end
return reply
