-- The codec of metadata, for scripts: stands before each script that reads or writes them. src/store/meta.rs describes
-- the form.
local match = string.match
-- Returns validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since ('' unknown),
-- note, version ('' for none), the announced version ('' for none) and since when it is; all of them text. Returns
-- nothing where no metadata are.
local function read_meta(packed)
  local validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since, version, announced,
    announced_at, note = match(packed or '',
      '^(%d+) (%d+) (%d+) (%d+) ([^ /~@#!]+)/?([^ ~@#!]*)~?(%d*)@?(%d*)#?(%d*)!?(%d*),?(%d*) (.*)$')
  if fetched_at == '' then fetched_at = validated_at end
  return validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since, note, version,
    announced, announced_at
end
-- Returns packed metadata.
local function write_meta(
    validated_at, own_expiry, invalidated, stale_for, hash, attempt, fetched_at, content_since, note, version,
    announced, announced_at)
  if attempt ~= '' then hash = hash .. '/' .. attempt end
  if fetched_at ~= validated_at then hash = hash .. '~' .. fetched_at end
  if content_since ~= '' then hash = hash .. '@' .. content_since end
  if version ~= '' then hash = hash .. '#' .. version end
  if announced ~= '' then hash = hash .. '!' .. announced .. ',' .. announced_at end
  return validated_at .. ' ' .. own_expiry .. ' ' .. invalidated .. ' ' .. stale_for .. ' ' .. hash .. ' ' .. note
end
-- Returns true if the note says that the open invalidation, of this time (text), is only a doubt.
local function is_doubt(note, invalidated) return match(note, '"u":(%d+)') == invalidated end
-- Returns the note with a doubt of this time (text; '' for none), and without any other. `q` is that of the previous
-- version. A note that is no JSON object stays as it is.
local function with_doubt(note, at)
  note = string.gsub(note, ',"[qu]":%w+', '')
  note = string.gsub(note, '"[qu]":%w+,?', '')
  if at == '' or string.sub(note, 1, 1) ~= '{' then return note end
  return '{"u":' .. at .. (note == '{}' and '' or ',') .. string.sub(note, 2)
end
-- Returns true if version a is lower than b; '' is lower than any. Versions are digits without leading zeros, and too
-- large for doubles.
local function lower(a, b) return #a < #b or #a == #b and a < b end
-- Judges the version of an answer; `stored`, `announced`, `announced_at` and `invalidated` are of the metadata (nil:
-- none). `patience` with an announced version is in ms, '' where the job has no versions. `look` is '1' where only a
-- higher version is to be stored.
-- Returns the objection: {'older', stored, invalidated (ms; 0: not)} where the present value has a higher version, or
-- {'behind', announced, since when, 1 while it is waited for} where a higher one was announced and nothing is gained;
-- else nil, and 0, or 1 (behind, and the announced version is still waited for), or 2 (behind)
local function judge(version, has_value, stored, announced, announced_at, invalidated, patience, look, now)
  if patience == '' or not stored then return nil, 0 end
  if has_value and lower(version, stored) then return {'older', stored, tonumber(invalidated)} end
  local open = invalidated ~= '0'
  if not lower(version, announced) or not open and look ~= '1' then return nil, 0 end
  local since = tonumber(announced_at) or 0
  local waits = open and since <= now and now < since + tonumber(patience)
  local gains = has_value and lower(stored, version)
  if not gains and (waits or not open and has_value) then return {'behind', announced, since, waits and 1 or 0} end
  return nil, waits and 1 or 2
end
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
