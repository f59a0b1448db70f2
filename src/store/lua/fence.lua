-- The fence, which stands before commit.lua, extend.lua and gone.lua: may the caller write under this lease?
-- Returns nothing to object to (nil), Redis's now (ms), when the lease began (ms)
--      or {'lost'} | {'evicted'}, lease dropped | {'again', when}, an invalidation came: lease renewed, begun anew then
-- `begun` is when the caller's fetch began: a lease that was renewed since, and whose holder has not heard of it, is no
-- leave to write what was fetched before.
local function fence(key, lease, token, renewed_ms, begun)
  local holder, start, mark = string.match(lease or '', '^(%S+) (%d+) (%S)$')
  if holder ~= token then return {'lost'} end
  if mark ~= 'e' and start ~= begun then return {'again', tonumber(start)} end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if mark == 'e' then
    redis.call('DEL', key)
    return {'evicted'}
  elseif mark == 'r' then
    redis.call('SET', key, token .. ' ' .. string.format('%d', now) .. ' +', 'PX', renewed_ms)
    return {'again', now}
  end
  return nil, now, start
end
