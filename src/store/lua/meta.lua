-- The codec of metadata, for scripts: stands before each script that reads or writes them. src/store/meta.rs describes
-- the form.
local match = string.match
-- Returns validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since ('' unknown),
-- note, version and announced version ('' for none); all of them text. Returns nothing where no metadata are.
local function read_meta(packed)
  local validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since, version, announced,
    note = match(packed or '',
      '^(%d+) (%d+) (%d+) (%d+) ([^ /~@#!]+)/?([^ ~@#!]*)~?(%d*)@?(%d*)#?(%d*)!?(%d*) (.*)$')
  if fetched_at == '' then fetched_at = validated_at end
  return validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since, note, version,
    announced
end
-- Returns packed metadata.
local function write_meta(
    validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since, note, version,
    announced)
  if attempt ~= '' then hash = hash .. '/' .. attempt end
  if fetched_at ~= validated_at then hash = hash .. '~' .. fetched_at end
  if content_since ~= '' then hash = hash .. '@' .. content_since end
  if version ~= '' then hash = hash .. '#' .. version end
  if announced ~= '' then hash = hash .. '!' .. announced end
  return validated_at .. ' ' .. own_expiry .. ' ' .. invalidated .. ' ' .. stale_for .. ' ' .. hash .. ' ' .. note
end
-- Returns true if version a is lower than b; '' is lower than any. Versions are digits without leading zeros, and too
-- large for doubles.
local function lower(a, b) return #a < #b or #a == #b and a < b end
-- Returns of the last attempt: trigger, crash count, storm ('1' or ''), outcome, when it began (ms; 0 where
-- validated_at says so).
local function read_attempt(attempt, note)
  local trigger, storm, outcome, began, crashes = match(attempt, '^(%d*)%.?(%d*)%.?(%d*)%.?(%d*)%.?(%d*)$')
  -- A worker of the previous version wrote them into the note, as JSON.
  if string.find(note, '"[tsoad]":%d') then
    trigger, storm = match(note, '"t":(%d+)'), match(note, '"s":(%d)')
    outcome, began = match(note, '"o":(%d+)'), match(note, '"a":(%d+)')
    crashes = match(note, '"d":(%d+)')
  end
  return tonumber(trigger or '') or 2, tonumber(crashes or '') or 0, storm or '',
    tonumber(outcome or '') or 0, tonumber(began or '') or 0
end
