-- The codec of scores, for scripts: stands before each script of the agenda. src/agenda/score.rs is the codec for Rust,
-- and describes the form. States: 'urgent', 'scheduled', 'claimed', 'running'. Triggers and priorities are numbers.
local format = string.format
-- Bands: the number that each takes from a time, and where it ends and the next one begins.
local HIGH, BULK, HELD, SCHEDULED = 4e13, 3e13, 2e13, 0
local HIGH_END, BULK_END, HELD_END = '-3.5e13', '-2.5e13', '-1e13'
-- Returns the first score of a time (ms) in a band, as text.
local function edge(at, band) return format('%.0f', at - band) end
-- Returns time (ms), state, trigger and priority.
local function decode(score)
  local fraction = score % 1
  local at, bits = score - fraction, fraction * 64
  bits = bits - bits % 1
  local trigger = bits % 8
  -- Of the previous version: a cron (0) and a manual one (4) that owed a recheck.
  if trigger > 5 then trigger = trigger == 6 and 0 or 4 end
  if score >= -1e13 then return at, 'scheduled', trigger, 0 end
  if score < -3.5e13 then return at + HIGH, 'urgent', trigger, 2 end
  if score < -2.5e13 then return at + BULK, 'urgent', trigger, 1 end
  return at + HELD, bits < 32 and 'claimed' or 'running', trigger, (bits - bits % 8) / 8 % 4
end
-- Returns a score, as text.
local function encode(at, state, trigger, priority)
  local bits = trigger
  if state == 'urgent' then
    at = at - (priority == 2 and HIGH or BULK)
  elseif state ~= 'scheduled' then
    at = at - HELD
    bits = bits + 8 * priority + (state == 'running' and 32 or 0)
  end
  return format('%.6f', at + bits / 64)
end
