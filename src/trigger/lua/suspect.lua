#!lua flags=allow-oom
-- Note that everything fetched at or before a time is suspect; of two such notes the later time and the stronger doubt count.
-- KEYS  1 the note: `time doubt`
-- ARGV  1 time (ms)  2 doubt: '1' invalidations may have been missed, '2' some were lost
--       3 channel of signals  4 the signal to send
-- Returns nothing
local at, doubt = string.match(redis.call('GET', KEYS[1]) or '0 0', '^(%d+) (%d)$')
at = math.max(tonumber(at or 0), tonumber(ARGV[1]))
doubt = math.max(tonumber(doubt or 0), tonumber(ARGV[2]))
redis.call('SET', KEYS[1], string.format('%.0f %d', at, doubt))
redis.call('PUBLISH', ARGV[3], ARGV[4])
