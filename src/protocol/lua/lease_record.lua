-- The codec of a lease's record, for scripts: stands before each script that reads or writes one. The record is
-- `token fetched_at mark`; src/store/lease.rs says what each mark means.
local FIRST, AGAIN, LOAD, REFRESH, EVICT = '-', '+', '=', 'r', 'e'
-- Returns token, fetched_at (ms, text), mark; nothing where no lease is.
local function read_lease(record) return string.match(record or '', '^(%S+) (%d+) (%S)$') end
-- Returns the record.
local function write_lease(token, fetched_at, mark) return token .. ' ' .. fetched_at .. ' ' .. mark end
