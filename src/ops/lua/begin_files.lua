-- Notes that a worker begins to work with these job files. A job whose digest differs from the noted one stays noted as
-- changed, also after a return to the earlier file, until its values are made due (end_change.lua).
-- A job's field is `base` (all values are made from it, or are on the agenda) or `base last` (values may be made from
-- something else; `last` began last).
-- KEYS  1 noted digests (hash, job to field)
-- ARGV  1… job and digest, for each job (at most 250)
-- Returns nothing
for i = 1, #ARGV, 2 do
  local noted = redis.call('HGET', KEYS[1], ARGV[i])
  if not noted then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  elseif noted ~= ARGV[i + 1] then
    redis.call('HSET', KEYS[1], ARGV[i], string.match(noted, '^[^ ]*') .. ' ' .. ARGV[i + 1])
  end
end
