-- The codec of scores, for scripts: stands before each script of the agenda. src/agenda/score.rs is the codec for Rust,
-- and describes the form. States: 'urgent', 'scheduled', 'claimed', 'running'. Triggers and priorities are numbers.
local format = string.format
-- Bands: the number that each takes from a time, and where it ends and the next one begins.
local HIGH, BULK, HELD, SCHEDULED = 4e13, 3e13, 2e13, 0
local HIGH_END, BULK_END, HELD_END = '-3.5e13', '-2.5e13', '-1e13'
-- Returns the first score of a time (ms) in a band, as text.
local function edge(at, band) return format('%.0f', at - band) end
-- Returns time (ms), state, trigger, priority, and whether a second look is owed.
local function decode(score)
  local fraction = score % 1
  local at, bits = score - fraction, fraction * 64
  bits = bits - bits % 1
  local trigger, look = bits % 8, false
  if trigger > 5 then trigger, look = trigger == 6 and 0 or 4, true end
  if score >= -1e13 then return at, 'scheduled', trigger, 0, look end
  if score < -3.5e13 then return at + HIGH, 'urgent', trigger, 2, look end
  if score < -2.5e13 then return at + BULK, 'urgent', trigger, 1, look end
  return at + HELD, bits < 32 and 'claimed' or 'running', trigger, (bits - bits % 8) / 8 % 4, look
end
-- Returns a score, as text. Only cron (0) and manual (4) can owe a second look; `look` says nothing for others.
local function encode(at, state, trigger, priority, look)
  local bits = look and (trigger == 0 and 6 or trigger == 4 and 7) or trigger
  if state == 'urgent' then
    at = at - (priority == 2 and HIGH or BULK)
  elseif state ~= 'scheduled' then
    at = at - HELD
    bits = bits + 8 * priority + (state == 'running' and 32 or 0)
  end
  return format('%.6f', at + bits / 64)
end
