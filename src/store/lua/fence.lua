-- The fence stands before commit.lua, extend.lua and gone.lua, and after lease_record.lua: may the caller write under
-- this lease? src/store/lease.rs describes its states.
-- Returns nothing to object to (nil), Redis's now (ms), fetched_at (ms, text)
--      or {'lost'}, also where it was marked in the millisecond in which it began | {'evicted'}, lease dropped
--      | {'again', when}, an invalidation came: lease renewed, begun anew then
-- `began` is when the caller's fetch began. It differs from fetched_at where the lease was renewed and its holder has
-- not heard of that: then what was fetched before may not be written.
local function fence(key, lease, token, renewed_ms, began)
  local holder, fetched_at, mark = read_lease(lease)
  if holder ~= token then return {'lost'} end
  if mark ~= EVICT and fetched_at ~= began then return {'again', tonumber(fetched_at)} end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if mark == EVICT then
    redis.call('DEL', key)
    return {'evicted'}
  elseif mark == REFRESH and now == tonumber(fetched_at) then
    -- Renewed in the millisecond in which it began, it would look as before. A commit that is sent again would pass.
    redis.call('DEL', key)
    return {'lost'}
  elseif mark == REFRESH then
    redis.call('SET', key, write_lease(token, string.format('%d', now), AGAIN), 'PX', renewed_ms)
    return {'again', now}
  end
  return nil, now, fetched_at
end
