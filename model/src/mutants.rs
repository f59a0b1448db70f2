//! Changes of one place in a script, each of which some property must notice.
//!
//! A text that is no longer in its script, or is there twice, fails the test, so that this list stays true. Behind `in`
//! is a scenario that kills the mutant, where the search takes long to come to it.

use crate::scripts::Mutant;

macro_rules! mutants {
    ($($file:literal: [$($from:literal => $to:literal $(in $scenario:literal)?,)*])*) => {
        &[$($(Mutant::new($file, $from, $to)$(.first_in($scenario))?,)*)*]
    };
}

/// Mutants that must be killed.
pub const KILLED: &[Mutant] = mutants! {
    "protocol/lua/lease_record.lua": [
        "'-', '+', '=', 'r', 'e'" => "'-', '+', '=', 'r', 'r'",
    ]
    "store/lua/fence.lua": [
        "if holder ~= token then return {'lost'} end" => "",
        "if mark ~= EVICT and fetched_at ~= began then return {'again', tonumber(fetched_at)} end" => ""
            in "a lost commit",
        "if mark == EVICT then\n    redis.call('DEL', key)\n    return {'evicted'}\n  elseif" => "if",
        "    redis.call('DEL', key)\n    return {'evicted'}" => "    return {'evicted'}",
        "elseif mark == REFRESH and now == tonumber(fetched_at) then" => "elseif false then",
        "elseif mark == REFRESH then" => "elseif mark == LOAD then",
        "AGAIN), 'PX', renewed_ms)" => "REFRESH), 'PX', renewed_ms)",
        ", AGAIN), 'PX', renewed_ms)" => ", AGAIN))",
        "return {'again', now}" => "return {'lost'}",
    ]
    "store/lua/lease.lua": [
        "if known[1] then" => "if known[3] then",
        "if fetched_at and tonumber(fetched_at) > now then" => "if false then" in "clock back a little",
        "if ARGV[6] == '1' then return {'absent'} end" => "",
        "if kind ~= 'string' then" => "if kind == 'none' then",
        "(invalidated or '0') == '0'" => "true",
        "stale_for == '0' and" => "" in "outlives its TTL",
        "tonumber(validated_at) <= now" => "true" in "clock back a little",
        "ours = ours and stale_for" => "ours = stale_for",
        "tonumber(validated_at) >= since" => "tonumber(validated_at) > since",
        "crashes >= tonumber(ARGV[8])" => "crashes > tonumber(ARGV[8])",
        "trigger == 1\n" => "trigger == 2\n",
        "again and AGAIN or FIRST), 'PX', ARGV[2])" => "again and AGAIN or FIRST))",
    ]
    "store/lua/commit.lua": [
        "if objection then return objection end" => "",
        "if not before and redis.call('TYPE', KEYS[1]).ok ~= 'none' then" => "if false then",
        "  redis.call('DEL', KEYS[2])\n  return {'wrongtype'}" => "  return {'wrongtype'}",
        "if refused then return refused end" => "" in "versions",
        "if behind == 0 then announced, announced_at = '', '' end" => "announced, announced_at = '', ''" in "versions",
        "if before ~= ARGV[2] then redis.call('PUBLISH', ARGV[9], ARGV[10]) end" => "",
        "if before ~= ARGV[2] then redis.call" => "if before then redis.call",
        "behind == 1 and invalidated or '0'" => "'0'" in "versions",
        "behind == 1 and invalidated or '0'" => "invalidated or '0'",
        "write_meta(fetched_at, expiry" => "write_meta(string.format('%d', now), expiry",
        "ARGV[2], 'PXAT', expiry)" => "ARGV[2])",
        "    ARGV[6], ARGV[12], announced, announced_at),\n  'PXAT', string.format('%d', pxat + tonumber(ARGV[7])))"
            => "    ARGV[6], ARGV[12], announced, announced_at))",
        "redis.call('DEL', KEYS[2])\nreturn {'done'" => "return {'done'",
    ]
    "store/lua/extend.lua": [
        "if objection then return objection end" => "",
        "own_expiry ~= ARGV[3] or redis.call('PEXPIRETIME', KEYS[1]) ~= tonumber(ARGV[3])" => "own_expiry ~= ARGV[3]"
            in "unchanged",
        "  or (unasked and invalidated ~= '0')" => " " in "paid for",
        "if refused then return refused end" => "" in "versions",
        "unasked and fetched_at or began" => "began",
        "write_meta(began, expiry, '0'" => "write_meta(began, expiry, invalidated",
        "redis.call('PEXPIREAT', KEYS[1], expiry)" => "",
        "redis.call('DEL', KEYS[2])\nreturn {'done'" => "return {'done'",
    ]
    "store/lua/extend_stale.lua": [
        " or tonumber(own_expiry) ~= pxat\n" => "\n" in "outlives its TTL",
        "invalidated ~= '0'" => "false",
        "not (ARGV[4] == '1' and is_doubt(note, invalidated))" => "not is_doubt(note, invalidated)" in "held back",
        "not (ARGV[4] == '1' and is_doubt(note, invalidated))" => "ARGV[4] ~= '1'",
        "math.min(ends + tonumber(ARGV[2]), now + tonumber(ARGV[1]))" => "now + tonumber(ARGV[1])",
        "local ends = pxat - tonumber(stale_for)" => "local ends = pxat",
        "if till > pxat then" => "if till ~= pxat then" in "unchanged",
    ]
    "store/lua/gone.lua": [
        "if objection then return objection end" => "",
        "if kind ~= 'string' and kind ~= 'none' then" => "if false then" in "other writers",
        "if went == 1 then redis.call('PUBLISH', ARGV[6], ARGV[7]) end" => "",
        "redis.call('DEL', KEYS[2])\nreturn {'done'" => "return {'done'",
    ]
    "store/lua/release.lua": [
        "if token ~= ARGV[1] then return {'lost'} end" => "",
        "redis.call('DEL', KEYS[2])\nif" => "if",
        "write_meta(validated_at, own_expiry, invalidated, stale_for"
            => "write_meta(validated_at, own_expiry, '0', stale_for",
        "with_doubt(ARGV[3], doubt)" => "ARGV[3]" in "held back",
        "return {'done', mark}" => "return {'done', '-'}",
    ]
    "store/lua/invalidate.lua": [
        "return at <= S or at > now end" => "return at < S or at > now end",
        "return at <= S or at > now end" => "return at <= S end",
        "local later = token and not before(tonumber(lease_fetched_at))" => "local later = true",
        "(refresh or mark ~= EVICT)" => "refresh",
        "write_lease(token, lease_fetched_at, ARGV[2]), 'KEEPTTL')" => "write_lease(token, lease_fetched_at, ARGV[2]))",
        "  fenced = 1" => "",
        "or before(fetched) or (pxat ~= -2 and not ours)" => "or before(fetched)" in "outlives its TTL",
        "local old = wanted ~= '' or not validated_at or before(fetched)"
            => "local old = wanted ~= '' or not validated_at",
        "if kind == 'string' then removed = redis.call('UNLINK', KEYS[1]) end"
            => "removed = redis.call('UNLINK', KEYS[1])",
        "if kind == 'string' then removed = redis.call('UNLINK', KEYS[1]) end" => "",
        "  if removed == 1 then redis.call('PUBLISH', ARGV[4], ARGV[5]) end" => "",
        "if not later then due = 1 end" => "",
        "    redis.call('PEXPIREAT', KEYS[1], own_expiry)" => "",
        "announced, announced_at), 'PX', string.format('%.0f', life))" => "announced, announced_at))",
        "math.max(redis.call('PTTL', KEYS[3]), redis.call('PTTL', KEYS[1]), 1)"
            => "math.max(redis.call('PTTL', KEYS[3]), 1)",
        "(mark == LOAD or mark == EVICT) then due = 3 end" => "mark == LOAD then due = 3 end",
        "if later then at = open and invalidated or '0' end" => "",
        "if later then at = open and invalidated or '0' end" => "if later then at = '0' end",
        "(mark == LOAD or mark == EVICT) then due = 3 end" => "mark == EVICT then due = 3 end",
        "if ours and pxat ~= -2 and not lower(version, wanted) then" => "if false then",
        "if lower(announced, wanted) then announced = wanted end" => "",
        "validated_at, own_expiry, at, stale_for, hash" => "validated_at, own_expiry, invalidated, stale_for, hash",
        "write_meta('0', '0', at, '0', '-'" => "write_meta('0', '0', '0', '0', '-'",
        "if wait > 0 then return" => "if wait >= 0 then return",
        "if doubt and open then at = invalidated else" => "if false then else",
        "if open and not doubt and" => "if false and",
        "if doubt and open or not known[2]" => "if not known[2]",
        "with_doubt('{}', doubt and at or ''), '',\n" => "with_doubt('{}', at), '',\n",
        "else note = with_doubt(note, doubt and at or '') end" => "else note = with_doubt(note, at) end",
        "and not (doubt and held_until > now)" => "",
        "    released = held_until\n" => "",
        "if mark == AGAIN and tonumber(lease_fetched_at) <= math.min(S, now) then return {0, 0, 0, 50, 0} end" => "",
        "    S, is_late = newest, true\n" => "",
        "    S, is_late = newest, true\n" => "    S, is_late = now, true\n",
        "    S, is_late = newest, true\n" => "    S = newest\n",
        "    S = math.min(noted, now)" => "",
        "    S = math.min(noted, now)" => "    S = now",
        "token and tonumber(lease_fetched_at) or fetched or 0" => "fetched or 0",
        "token and tonumber(lease_fetched_at) or fetched or 0" => "token and tonumber(lease_fetched_at) or 0",
        "if refresh and last > 0 and not doubt" => "if last > 0 and not doubt",
        "if refresh and last > 0 and not doubt" => "if refresh and not doubt",
        "last > 0 and not doubt and wanted == '' and mark" => "last > 0 and wanted == '' and mark" in "late messages",
        "last > 0 and not doubt and wanted == '' and mark" => "last > 0 and not doubt and mark" in "versions",
        "and mark ~= EVICT and not before(newest)" => "and not before(newest)",
        "and mark ~= EVICT and not before(newest)" => "and mark ~= EVICT and newest > 0",
        "open and tonumber(invalidated) or 0" => "tonumber(invalidated) or 0" in "late messages",
        "open and tonumber(invalidated) or 0" => "0",
        "if noted >= newest then" => "if noted > newest then",
        "math.max(noted, rechecked_since" => "math.max(rechecked_since",
        "rechecked_since(note or ''), newest" => "newest" in "loads",
        "note or ''), newest - last) <" => "note or '')) <" in "loads",
        "S - math.min(1000, last / 4)" => "S",
        "since and flags % 64 < 32 and tonumber(since)" => "since and tonumber(since)",
        "since and flags % 64 < 32 and tonumber(since)" => "nil" in "loads",
    ]
    "store/lua/guard.lua": [
        "guard.since > 0 and 86520000 or 120000" => "120000",
        "math.max(guard['until'], now) + longer" => "now + longer",
        "redis.call('PEXPIREAT', key, string.format('%.0f', math.max(guard['until'], now) + longer))" => "",
        "return guard.since <= now and now < guard['until']" => "return now < guard['until']",
        "return guard.since <= now and now < guard['until']" => "return guard.since <= now",
        "if redis.call('HDEL', key, '=' .. entry) == 0 then return 0 end"
            => "if redis.call('HEXISTS', key, '=' .. entry) == 0 then return 0 end",
        "  guard.held = guard.held - 1" => "",
        "guard.held == 0 and guard.accepted == 0 and" => "guard.accepted == 0 and",
        "guard.accepted == 0 and guard.restored == 0" => "guard.restored == 0",
        "and guard.restored == 0 then\n    guard['until']" => "then\n    guard['until']",
        "math.max(now, guard.last + minute)" => "now",
    ]
    "store/lua/guard_removal.lua": [
        "if marked > now + longest then marked = 0 end" => "",
        "marked > 0 and marked <= now" => "false",
        "string.format('%.0f', now)) == 0" => "'1') == 0",
        "  guard.held = guard.held + 1" => "",
        "guard.accepted == 1 or is_over" => "is_over",
        "is_over and guard.since >= marked" => "is_over",
        "    forget(KEYS[1], guard, ARGV[8], now, minute)" => "",
        "and guard.held == 1 and guard.restored == 0 then" => "and guard.restored == 0 then",
        "if note() and guard.held == 1 and guard.restored == 0 then" => "if note() and guard.held == 1 then",
        "  guard.last = now\n  write_guard" => "  write_guard",
        "if is_over then return {0} end" => "",
        "if guard.since > 0 and guard.since <= now then marked = 0 end" => "",
        "if guard.since > 0 and guard.since <= now then" => "if guard.since > 0 then",
        "if guard.minute == present - 1 then" => "if guard.minute == present then",
        "elseif guard.minute ~= present then" => "elseif false then",
        "guard.minute, guard.count, guard.most = present, 0, 0" => "guard.minute = present",
        "guard.most = math.max(guard.most, redis.call('ZCARD', KEYS[2]))" => "",
        "math.ceil(guard.before * (1 - now % minute / minute))" => "guard.before",
        "(guard.before * (1 - now % minute / minute)) + guard.count + 1"
            => "(guard.before * (1 - now % minute / minute)) + guard.count",
        "math.max(guard.most, guard.most_before, gone)" => "math.max(guard.most, gone)",
        "math.floor(of / 2) + 1" => "math.floor(of / 2)",
        "gone * 100 <= share * of" => "gone * 100 < share * of",
        "marked == 0 and (gone < least" => "(gone < least",
        "  guard.count = guard.count + 1" => "",
        "redis.call('UNLINK', KEYS[1])\nguard.since" => "guard.since",
        "marked > 0 and 1 or 0\nnote()" => "0\nnote()",
        "math.min(marked, now + hold) or now + hold" => "marked or now + hold",
    ]
    "store/lua/guard_recovery.lua": [
        "if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], '=' .. ARGV[1]) ~= ARGV[3] then return 0 end" => "",
        "ARGV[3] ~= '' and" => "",
    ]
    "store/lua/guard_decision.lua": [
        "  if not active then" => "  if false then",
        "    redis.call('UNLINK', KEYS[1])\n    guard.since" => "    guard.since",
        "guard.accepted, guard['until'] = 1, now + hold" => "guard.accepted = 1",
        "elseif active and guard.accepted == 1 and not holds_any then" => "elseif false then",
        "elseif active and holds_any then" => "elseif active then",
        "local holds_any = guard.held > 0 or" => "local holds_any =",
        "guard.held > 0 or guard.restored == 1" => "guard.held > 0",
        "math.min(guard['until'] + hold, now + tonumber(ARGV[3]))" => "guard['until'] + hold",
    ]
    "store/lua/meta.lua": [
        "return #a < #b or #a == #b and a < b" => "return a < b and #a <= #b and false",
        "if has_value and lower(version, stored) then" => "if false then" in "versions",
        "now < since + tonumber(patience)" => "false" in "versions",
        "if fetched_at == '' then fetched_at = validated_at end" => "",
        "match(note, '\"u\":(%d+)') == invalidated" => "false",
        "if at == '' or string.sub(note, 1, 1) ~= '{' then return note end" => "if true then return note end",
    ]
    "store/lua/tag.lua": [
        "redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])" => "",
        "return stamp" => "return '0'",
    ]
    "store/lua/untag.lua": [
        "if not score or tonumber(score) > tonumber(ARGV[2]) then" => "if not score then",
    ]
    "store/lua/stamp.lua": [
        "if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end" => "if false then return 0 end",
        "if ARGV[2] == 'e' then score = score - 0.5 end" => "",
        "redis.call('ZADD', KEYS[1], 'LT', string.format('%.1f', score), '')" => "",
    ]
    "store/lua/stamp_unknown.lua": [
        "redis.call('ZADD', KEYS[1], 'LT', string.format('%.1f', score), ARGV[1])" => "",
        "if spare <= 0 then return end" => "if true then return end",
        "redis.call('ZADD', KEYS[1], string.format('%.0f', math.floor(tonumber(forgotten[#forgotten]) + 0.5)), '')"
            => "",
    ]
    "store/lua/read_unknown.lua": [
        "scores[i + 1] or scores[1] or '0'" => "scores[1] or '0'",
        "scores[i + 1] or scores[1] or '0'" => "scores[i + 1] or '0'",
    ]
    "source/limits/lua/state.lua": [
        "if left <= 0 or not known[1] then return 0, 0 end" => "if left <= 0 then return 0, 0 end",
        "if ends <= now or not known[1] then before, ends, most, told_of = 0, now + per, 0, '0' end" => "",
        "if ends <= now or not known[1] then" => "if ends <= now then",
        "spent_in_all - math.max(counted, heard)" => "spent_in_all - heard",
        "spent_in_all - math.max(counted, heard)" => "spent_in_all - counted",
        "spent_in_all - math.max(counted, heard)" => "spent_in_all - (counted > 0 and counted or heard)",
        "spent_in_all - math.max(counted, heard)"
            => "spent_in_all - (counted > 0 and ends > now and counted or math.max(counted, heard))",
        "if tokens <= 0 then return false, 0 end" => "",
        "string.format('%.0f %.0f', spent_in_all, now)" => "string.format('%.0f %.0f', heard, now)",
        "if not known[5] then forget() end" => "",
        "if at and math.abs(now - tonumber(at)) > 3600000" => "if at and now - tonumber(at) > 3600000",
        "if at and math.abs(now - tonumber(at)) > 3600000" => "if at and math.abs(now - tonumber(at)) > 1000",
        "if #over > 0 then redis.call('HDEL', KEYS[3], unpack(over)) end" => "",
        "if spent >= budget and not is_told(told_of, budget) then" => "if false then",
        "if spent >= budget and not is_told(told_of, budget) then" => "if spent >= budget then",
        "if is_told(told_of, budget) then return 0 end" => "",
        "if long and left > long then" => "if false then",
        "if asked_at > now and get('blocked') > asked_at then" => "if false then",
        "    set('blocked_at', now)" => "",
        "if get('open') > 0 then cut('open', get('open_for')) end" => "",
        "if budget > 0 and tokens >= budget and left > wait then" => "if false then",
    ]
    "source/limits/lua/take_permit.lua": [
        "if window() + held + kept + tokens > budget and (held > 0 or kept > 0) then" => "if false then",
        "local held = reserved(2 * hold + ahead + 1000)" => "local held = 0",
        "tokens = answer > 0 and prompt + answer or budget" => "tokens = prompt",
        "redis.call('HSET', KEYS[4], id, string.format('%.0f %.0f', tokens, back))" => "",
        "if free <= 0 or" => "if free < 0 or",
        "if tat > latest then" => "if false then",
    ]
    "source/limits/lua/return_permit.lua": [
        "    set('blocked_at', now)\n" => "",
        "used_up, told = book(ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), budget)" => "",
    ]
    "source/limits/lua/inspect.lua": [
        "used_up, told = book(ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[2]), budget)" => "",
        "redis.call('HDEL', KEYS[3], 'tokens', 'told_80', 'told_100')" => "",
        "if math.abs(now - ends) > 3600000 then" => "if true then",
        "if math.abs(now - ends) > 3600000 then" => "if now - ends > 3600000 then",
        "if math.abs(now - ends) > 3600000 then" => "if false then",
    ]
    "agenda/lua/score.lua": [
        "bits < 32 and 'claimed' or 'running'" => "'claimed'",
        "(state == 'running' and 32 or 0)" => "0",
        "bits = bits + 8 * priority" => "bits = bits + 8",
    ]
    "agenda/lua/due.lua": [
        "move = how ~= 'there'" => "move = true",
        "elseif how ~= 'keep' then" => "else",
        "local of = weaker and before or trigger" => "local of = trigger",
        "move = priority > 0 or at < old_at or (stronger and at <= now)" => "move = priority > 0 or at < old_at",
        "override and (state == 'running' or held < priority)" => "override and held < priority",
        "or before == 5 and trigger ~= 5" => "",
        "or before == 2 and priority > 0" => "",
        "as = score(how == 'urgent' or held == 2, true, of, earliest)"
            => "as = score(how == 'urgent', true, of, earliest)",
        "if priority > 0 or at < now + 5000 then" => "if priority > 0 then",
        "if waits and stronger and not move and" => "if false and",
        "and not move and (before == 5 or before == 2)" => "and not move",
        "(before == 5 or before == 2)" => "before == 5",
        "(before == 5 or before == 2)" => "before == 2",
        "waits and stronger and not move" => "stronger and not move",
        "waits and stronger and not move" => "waits and not move",
        "encode(old_at, state, trigger, held)" => "encode(old_at, 'scheduled', trigger, 0)",
        "(state == 'running' or old_at == now + 1) and now + 1 or 0" => "0",
        "(state == 'running' or old_at == now + 1)" => "old_at == now + 1",
        "(state == 'running' or old_at == now + 1)" => "state == 'running'",
        "encode(math.max(now, earliest)" => "encode(now",
        "encode(math.max(at, earliest)" => "encode(at",
    ]
    "agenda/lua/claim.lua": [
        "if redis.call('EXISTS', KEYS[2]) == 1 then" => "if false then",
        "math.min(room, times * cap - held)" => "room",
        "room, held = room - count, held + count" => "held = held + count",
        "claimed('-inf', '(' .. edge(now + 1, HIGH), 3)" => "",
        "claimed('-inf', '(' .. edge(now + 1, HIGH), 3)" => "claimed('-inf', edge(now + 1, HIGH), 3)" in "dead letters",
        "claimed(HIGH_END, '(' .. edge(now + 1, BULK), 2)" => "",
        "claimed(BULK_END, '(' .. lapsed, 2)" => "",
        "claimed(BULK_END, '(' .. lapsed, 3, nil, 2)" => "" in "a tag that others have",
        "claimed(future, '(' .. HELD_END, 2)" => "" in "clock back far",
        "claimed('0', '(' .. edge(now + 1, SCHEDULED), 1)" => "claimed('0', '(' .. edge(now + 1, SCHEDULED), 2)",
        "if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end" => "",
        "nearest = math.min(nearest," => "nearest = math.max(0,",
        "if number and number ~= ARGV[5] then" => "if false then",
        "if number and number ~= ARGV[5] then" => "if number then",
        "'(' .. edge(tonumber(ended) + 1, HELD), 1000, 'claimed')" => "'(' .. edge(tonumber(ended) + 1, HELD), 1000)",
        "'(' .. edge(tonumber(ended) + 1, HELD), 1000" => "'(' .. edge(tonumber(ended) + 2, HELD), 1000",
        "claim(edge(tonumber(ended), HELD)" => "claim('(' .. edge(tonumber(ended) + 1, HELD)",
        "HELD), 1000, 'claimed')" => "HELD), room, 'claimed')",
        "if anew > 0 then room = 0 end" => "",
        "is == (state or is)" => "is == is",
        "has == (priority or has)" => "has == has",
        "claimed(far, '(' .. future, 2, 'claimed')" => "",
        "claimed(far, '(' .. future, 2, 'claimed')" => "claimed(lapsed, '(' .. future, 2, 'claimed')",
        "claimed(far, '(' .. future, 2, 'claimed')" => "claimed(far, '(' .. future, 2)",
        "edge(till + 60001, HELD)" => "edge(till + 60000, HELD)",
        "edge(till + 3600001, HELD)" => "edge(till + 3600000, HELD)",
        "if reply[3] then redis.call('SET', KEYS[3]" => "if false then redis.call('SET', KEYS[3]",
        ".. ' ' .. ARGV[4], 'PX', ARGV[3])" => ".. ' ' .. ARGV[5], 'PX', ARGV[3])",
        ".. ' ' .. ARGV[4], 'PX', ARGV[3])" => ".. ' ' .. ARGV[4])",
        "string.format('%.0f', till) .. ' '" => "string.format('%.0f', now) .. ' '",
    ]
    "agenda/lua/take.lua": [
        "tonumber(scores[i]) == claimed" => "true",
        "if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end" => "",
        "elseif state == 'running' and" => "elseif",
        "and since < till and" => "and",
        "and ends >= since and" => "and",
        "ends >= since" => "ends > since",
        "and has == trigger and" => "and",
        "and had == priority then" => "then",
        "elseif state == 'running'" => "elseif false and state == 'running'",
        "reply[i] = encode(ends, state, has, had)" => "reply[i] = encode(till, state, has, had)",
    ]
    "agenda/lua/cancel.lua": [
        "stays = at > evicted_at" => "stays = at >= evicted_at",
        "(state == 'urgent' and 1 or 1000)" => "1e6",
        "(state == 'urgent' and 1 or 1000)" => "(state == 'urgent' and 0 or 1000)",
        "encode(now + 1, priority" => "encode(now, priority",
        "(state == 'urgent' and 1 or 1000)" => "1" in "failures",
        "trigger ~= 1 and trigger ~= 2 and trigger ~= 5" => "trigger ~= 1 and trigger ~= 2",
        "trigger ~= 1 and trigger ~= 2 and trigger ~= 5" => "true",
        "      stays = asked" => "      stays = true",
        " or state == 'scheduled' and asked then" => " then",
        " or state == 'scheduled' and asked then" => " or state == 'scheduled' then",
        "if not stays and (state == 'running' or trigger ~= 2 and trigger ~= 5) then" => "if false then",
        "(state == 'running' or trigger ~= 2 and trigger ~= 5)" => "trigger ~= 2 and trigger ~= 5",
        "(state == 'running' or trigger ~= 2 and trigger ~= 5)" => "(state == 'running' or trigger == 1)",
        "if moves[1] then redis.call('ZADD', KEYS[1], unpack(moves)) end" => "",
        "if out[1] then redis.call('ZREM', KEYS[1], unpack(out)) end" => "",
    ]
    "agenda/lua/finish.lua": [
        "if scores[n] and tonumber(scores[n]) == held then" => "if scores[n] then",
        "due = encode(tonumber(arg), 'scheduled', 5)" => "due = encode(tonumber(arg), 'scheduled', 2)",
        "priority > 0 and 'urgent' or 'scheduled'" => "'scheduled'",
        "math.max(tonumber(arg), 1)" => "tonumber(arg)",
        "if soonest < now + 5000 then" => "if false then",
        "if out[1] then redis.call('ZREM', KEYS[1], unpack(out)) end" => "",
        "local spare = dead[1] and" => "local spare = false and" in "dead letters",
        "try('ZREM', KEYS[2], unpack(alive))" => "",
        "if what ~= 'dead' then alive" => "if what ~= 'dead' and what ~= 'in' then alive",
        "try('HSETNX', KEYS[4], 'since', string.format('%.0f', now))" => "",
    ]
    "cache/lua/begin_load.lua": [
        "if redis.call('EXISTS', KEYS[1]) == 1 then return" => "if false then return",
        "if mark and mark ~= EVICT then" => "if false then",
        "if mark and mark ~= EVICT then" => "if mark == LOAD then",
        "if tonumber(fetched_at) > now then redis.call('PEXPIRE', KEYS[2], ARGV[2], 'LT') end" => ""
            in "clock back far",
        "LOAD), 'PX', ARGV[2])" => "LOAD))",
    ]
    "cache/lua/commit_load.lua": [
        "if token ~= ARGV[1] then return 0 end" => "",
        "redis.call('DEL', KEYS[2])\n" => "",
        "if mark ~= LOAD then return 0 end" => "",
        "ARGV[2], 'NX', 'PX', ARGV[3])" => "ARGV[2], 'PX', ARGV[3])",
        "if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end" => "",
    ]
    "cache/lua/drop_lease.lua": [
        "if token ~= ARGV[1] then return 0 end" => "" in "a slow load",
        "return redis.call('DEL', KEYS[1])" => "return 1",
    ]
    "cache/lua/set.lua": [
        "if kind ~= 'string' and kind ~= 'none' then" => "if false then",
        "if token then redis.call('SET', KEYS[2], write_lease(token, fetched_at, EVICT), 'KEEPTTL') end" => "",
        "write_lease(token, fetched_at, EVICT), 'KEEPTTL')" => "write_lease(token, fetched_at, EVICT))",
    ]
    "cache/lua/delete.lua": [
        "if token then redis.call('SET', KEYS[2], write_lease(token, fetched_at, EVICT), 'KEEPTTL') end" => "",
        "redis.call('TYPE', KEYS[1]).ok == 'string' and" => "",
        "if removed == 1 and ARGV[1] ~= '' then redis.call('PUBLISH', ARGV[1], ARGV[2]) end" => "",
    ]
    "cache/lua/track.lua": [
        "if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end" => "if false then return 0 end",
        "'GT', " => "",
    ]
    "cache/lua/admit_within.lua": [
        "while ahead < count and tonumber(redis.call('LINDEX', KEYS[1], -1)) > now do" => "while false do",
        "for _ = 1, ahead do redis.call('RPUSH', KEYS[1], string.format('%.0f', now)) end" => "",
        "if tonumber(redis.call('LINDEX', KEYS[1], 0)) <= past then" => "if false then",
        "if tonumber(redis.call('LINDEX', KEYS[1], 0)) <= past then"
            => "if tonumber(redis.call('LINDEX', KEYS[1], 0)) < past then",
        "middle)) <= past then low" => "middle)) < past then low",
        "low = middle else high = middle" => "low = middle else high = middle - 1",
        "local low, high = 0, count" => "local low, high = 0, 1",
        "    count = count - high" => "",
        "if count < limit then" => "if count <= limit then",
        "if count < limit then" => "if count < limit - 1 then",
        "  redis.call('RPUSH', KEYS[1], string.format('%.0f', now))\n  redis.call('PEXPIRE'"
            => "  redis.call('PEXPIRE'",
        "math.ceil(period / 1000) + 1" => "math.floor(period / 1000) - 1",
        "  redis.call('PEXPIRE', KEYS[1], ttl)\n  count" => "  count",
        "if ahead > 0 then redis.call('PEXPIRE', KEYS[1], ttl) end" => "",
        "if count >= limit then wait" => "if count > limit then wait",
        "redis.call('LINDEX', KEYS[1], -1)) + period - now" => "redis.call('LINDEX', KEYS[1], 0)) + period - now",
    ]
    "cache/lua/lock.lua": [
        "if holder and holder ~= ARGV[1] then" => "if false then",
        "math.max(now_us, last + 1)" => "now_us",
        "if not holder then" => "if true then",
    ]
    "cache/lua/renew_lock.lua": [
        "if holder ~= ARGV[1] then return 0 end" => "",
    ]
    "store/lua/mark.lua": [
        "if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end" => "",
        "if before ~= 0 and tonumber(redis.call('ZSCORE', KEYS[1], '\\0') or 0) ~= before then return 0 end" => "",
    ]
    "trigger/lua/tick.lua": [
        "if at > now then" => "if at >= now then",
        "tonumber(redis.call('HGET', KEYS[2], job) or at)" => "at",
        "redis.call('ZADD', KEYS[1], string.format('%.0f', till), job)" => "",
    ]
    "trigger/lua/end_tick.lua": [
        "if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end" => "",
        "if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])) ~= tonumber(ARGV[3]) then return 0 end" => "",
        "redis.call('HDEL', KEYS[2], ARGV[1], state)" => "",
    ]
    "trigger/lua/hold_tick.lua": [
        "if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])) ~= till then return -1 end" => "",
    ]
    "trigger/lua/retry_tick.lua": [
        "if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1])) ~= tonumber(ARGV[3]) then return 0 end" => "",
    ]
    "trigger/lua/ensure.lua": [
        "redis.call('HDEL', KEYS[2], ARGV[1], ARGV[1] .. '/state')" => "",
        "redis.call('ZADD', KEYS[1], 'LT', string.format('%.0f', latest), ARGV[1])" => "",
        "latest = math.max(latest, now + tonumber(ARGV[4]))" => "",
    ]
    "ops/lua/roll_reads.lua": [
        "if not (found[1] or found[2] or found[3]) then return {0, {}} end" => "",
        "#text > 15 or " => "",
        "'^%d+$'" => "'%d+'",
        "redis.call('HSET', KEYS[1], field, 0)" => "",
        "string.sub(text, 1, 40)" => "text",
        " or #refused > 0, 0" => ", 0",
        "sums[n] < tonumber(earlier)" => "sums[n] <= tonumber(earlier)",
        "sums[n] < tonumber(earlier)" => "false",
        "if not is_new and math.abs(elapsed)" => "if math.abs(elapsed)",
        "math.abs(elapsed) < tonumber" => "elapsed < tonumber",
        "math.abs(elapsed) < tonumber" => "math.abs(elapsed) <= tonumber",
        "is_new = is_new or elapsed < 0" => "",
        "text == found[4] and not is_new" => "text == found[4]",
        "elapsed > tonumber(ARGV[2])" => "elapsed >= tonumber(ARGV[2])",
        "is_new = type(added) == 'table' and added.err ~= nil" => "",
        "unpack(figure, 1, 6)" => "unpack(figure)",
        "'MAXLEN', ARGV[3]" => "'MAXLEN', 99",
        "redis.call('DEL', KEYS[2])" => "",
        "'base', text)" => "'base', found[6] or text)",
        "'since', string.format('%.0f', now), " => "",
        "redis.call('PEXPIRE', KEYS[1], ARGV[4])" => "",
        "redis.call('PEXPIRE', KEYS[2], ARGV[4])" => "",
        "redis.call('HSET', KEYS[1], 'rolled', text, 'rolled_ms', string.format('%.0f', now))" => "",
        "is_same and 0 or 1" => "1",
    ]
    "ops/lua/claim_audits.lua": [
        "math.min(asked, tonumber(ARGV[1]))" => "asked",
        "-some) <= 0" => "-some) < 0",
        "-some) <= 0" => "-1) <= 0",
        "elseif interval > 0" => "elseif true",
        "if not due or due <= now or" => "if not due or",
        "or due <= now or" => "or due < now or",
        " or due > now + interval" => "",
        "string.format('%.0f', now + interval)" => "string.format('%.0f', now)",
        "redis.call('PEXPIRE', KEYS[1], ARGV[2])" => "",
        "if due and due <= now then" => "if due then",
        "if due and due <= now then" => "if not due or due <= now then",
    ]
    "ops/lua/withdraw_audits.lua": [
        "asked > tonumber(ARGV[2])" => "asked >= tonumber(ARGV[2])",
        "-ARGV[2])" => "ARGV[2])",
        "redis.call('HDEL', KEYS[1], ARGV[1])" => "",
    ]
    "telemetry/lua/add_figures.lua": [
        "(now - tonumber(ARGV[1]))" => "now",
        "if string.match(text, '^%d+') ~= hour then text = hour end" => "if text == '' then text = hour end",
        "tonumber(hour) % tonumber(ARGV[2])" => "tonumber(hour)",
        "minute % 60)" => "minute % 10)",
        "'([^ ]*)'" => "'([^ ]+)'",
        "(counts[name] or 0) + tonumber(count)" => "tonumber(count)",
        "string.sub(text, 1, from - 1) .. figures .. string.sub(text, to + 1)"
            => "string.sub(text, 1, from - 1) .. figures",
        "if from then" => "if false then",
        "for name, count in string.gmatch(figures or '', '(%w+)=(%d+)') do add(name, count) end" => "",
        "redis.call('PEXPIRE', KEYS[1], ARGV[3])" => "",
        "return minute" => "return tonumber(hour)",
    ]
    "cache/lua/increment.lua": [
        "if created and ARGV[2] ~= ''" => "if ARGV[2] ~= ''",
        "if created and ARGV[2] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end" => "",
    ]
};

/// Mutants that nothing can notice, and why.
pub const EQUIVALENT: &[(Mutant, &str)] = &[
    (
        Mutant::new("store/lua/lease.lua", "pxat >= till", "pxat > till"),
        "The bound lies three tenths of `ahead` from any expiry that is compared with it; either is right at it.",
    ),
    (
        Mutant::new(
            "store/lua/meta.lua",
            "match(note, '\"u\":(%d+)') == invalidated",
            "match(note, '\"u\":(%d+)') ~= nil",
        ),
        "Only workers of the previous build leave another doubt's time in the note: see tests/gone_guard/marks.rs.",
    ),
    (
        Mutant::new("store/lua/guard.lua", "  guard.held = fields\n", ""),
        "Only workers of an earlier build count entries without naming them: see tests/gone_guard/marks.rs.",
    ),
    (
        Mutant::new(
            "agenda/lua/claim.lua",
            "claimed(HIGH_END, '(' .. edge(now + 1, BULK), 2)",
            "claimed(HIGH_END, edge(now + 1, BULK), 2)",
        ),
        "The bound is the score of a warmup (trigger 0), and no warmup makes an entry due as bulk.",
    ),
];
