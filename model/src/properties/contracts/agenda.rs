//! The contracts of the agenda's scripts.

use crate::calls::{self, AGENDA, CAP, CLAIM, Call, DEAD_LETTERS, PAUSED, RUN, STATS};
use crate::commands::Reply;
use crate::db::Db;
use crate::engine::{Due, Engine};
use crate::properties::{CONTRACT, COUNTER};
use crate::world::{Step, violated};

/// The strength of a trigger.
fn strength(trigger: u8) -> u8 {
    [3, 4, 2, 1, 5, 0][usize::from(trigger)]
}

fn decoded(engine: &Engine, db: &Db, entry: &str) -> Option<Due> {
    db.score(AGENDA, entry).map(|score| engine.due(score))
}

pub(super) fn due(engine: &Engine, before: &Db, after: &Db, call: &Call) -> Step {
    let (how, trigger) = (call.args[0].as_str(), call.args[1].parse::<u8>().unwrap_or(0));
    let now = before.now();
    let at = call.args[2].parse().ok().filter(|at| *at != 0).unwrap_or(now);
    let priority = match how {
        "urgent" => 2,
        "bulk" => 1,
        _ => 0,
    };
    let override_ = call.args[3] == "1";
    // What was taken in this millisecond, or put off by one, is not taken in it.
    let later = |was: &Due| was.state == "running" || was.at == now + 1;
    let wrong = |what: &str, old: &Option<Due>, new: &Option<Due>| {
        violated(CONTRACT, format!("due.lua: {how} {trigger} at {at}: {what}: {old:?} became {new:?}"))
    };
    let mut moved = false;
    for entry in &call.args[6..] {
        let (old, new) = (decoded(engine, before, entry), decoded(engine, after, entry));
        moved |= old != new;
        let placed = match how {
            "urgent" => Due { at: now, state: "urgent".into(), trigger, priority: 2 },
            "bulk" => Due { at, state: "urgent".into(), trigger, priority: 1 },
            _ => Due { at, state: "scheduled".into(), trigger, priority: 0 },
        };
        let Some(was) = &old else {
            if new.as_ref() != Some(&placed).filter(|_| how != "there") {
                return wrong("an absent entry", &old, &new);
            }
            continue;
        };
        let Some(is) = &new else { return wrong("it left", &old, &new) };
        let earliest = if later(was) { now + 1 } else { 0 };
        let placed = Due { at: placed.at.max(earliest), ..placed };
        if is != was && is.at < earliest {
            return wrong("it is due at once", &old, &new);
        }
        if how == "keep" && is != was {
            return wrong("it was there", &old, &new);
        }
        let may_take = priority > 0 || matches!(was.trigger, 2 | 5);
        let takes = |is: &Due| !may_take || strength(trigger) <= strength(was.trigger) || is.trigger == trigger;
        let stays = |is: &Due| strength(is.trigger) >= strength(was.trigger);
        let right = match was.state.as_str() {
            _ if how == "keep" => true,
            "urgent" => {
                is.state == "urgent"
                    && stays(is)
                    && is.priority >= was.priority.max(priority)
                    && (is.priority > was.priority || is.at <= was.at || strength(trigger) > strength(was.trigger))
                    && (how != "there"
                        || at >= was.at
                        || later(was)
                        || is.at == at
                        || was.priority == 2 && is.at == now)
                    && takes(is)
            }
            "scheduled" if priority > 0 => is.state == "urgent" && is.priority == priority && stays(is),
            "scheduled" => {
                let anew = strength(trigger) > strength(was.trigger) && at <= now;
                let moves = at < was.at || anew;
                let expected = if moves { at.max(earliest) } else { was.at };
                let may_change = moves || may_take || is == was;
                is.at == expected && stays(is) && takes(is) && is.state == "scheduled" && may_change
            }
            state => {
                let must = override_ && (state == "running" || was.priority < priority)
                    || was.trigger == 5 && trigger != 5
                    || was.trigger == 2 && priority > 0;
                let kept = how == "there" && was.priority > 0;
                match must {
                    false => is == was,
                    true if kept => is.state == "urgent" && is.priority == was.priority,
                    true => *is == placed,
                }
            }
        };
        if !right {
            return wrong("it is there", &old, &new);
        }
    }
    let is_told = !moved || priority == 0 && at >= now + 5_000 || !after.published.is_empty();
    if is_told { Ok(()) } else { violated(CONTRACT, "due.lua: dispatchers are not woken") }
}

pub(super) fn claim(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let now = before.now();
    if before.slot(PAUSED).is_some() {
        return match before == after && reply.part(1).text() == "-2" {
            true => Ok(()),
            false => violated(CONTRACT, "claim.lua: a paused job was claimed"),
        };
    }
    let all: Vec<(&str, Due)> =
        before.members(AGENDA).iter().map(|(score, entry)| (entry.as_str(), engine.due(score.0))).collect();
    let future = now + CLAIM + 3_600_000;
    let is = |due: &Due, state: &str, priority: u8| due.state == state && due.priority == priority;
    let holds = |due: &Due| matches!(due.state.as_str(), "claimed" | "running");
    let is_due = |due: &Due| due.at <= now;
    type Class<'a> = (usize, &'a dyn Fn(&Due) -> bool);
    let classes: [Class<'_>; 9] = [
        (3, &|due| is(due, "urgent", 2) && is_due(due)),
        (3, &|due| holds(due) && due.priority == 2 && due.at <= now),
        (2, &|due| is(due, "urgent", 1) && is_due(due)),
        (3, &|due| is(due, "urgent", 2) && due.at > now + 900_000),
        (2, &|due| is(due, "urgent", 1) && due.at > now + 900_000),
        (2, &|due| holds(due) && due.at <= now),
        (2, &|due| due.state == "claimed" && due.at > now + CLAIM + 60_000 && due.at <= future),
        (2, &|due| holds(due) && due.at > future),
        (1, &|due| due.state == "scheduled" && due.at <= now),
    ];
    let mut room = call.args[0].parse::<usize>().unwrap_or(0);
    let mut expected: Vec<(&str, &Due)> = Vec::new();
    let last = before.text(&call.keys[2]).and_then(|last| last.split_once(' '));
    if let Some((ended, _)) = last.filter(|(_, number)| *number != call.args[4]) {
        let is_lost = |due: &Due| due.state == "claimed" && due.at.to_string() == ended;
        expected.extend(all.iter().filter(|(_, due)| is_lost(due)).map(|(entry, due)| (*entry, due)));
        room = if expected.is_empty() { room } else { 0 };
    }
    let is_held = |entry: &str, due: &Due| {
        expected.iter().any(|(of, _)| *of == entry) || holds(due) && due.at > now && due.at <= future
    };
    let mut held = all.iter().filter(|(entry, due)| is_held(entry, due)).count();
    for (times, class) in classes {
        for (entry, due) in &all {
            if class(due) && room > 0 && held < times * CAP && !expected.iter().any(|(of, _)| of == entry) {
                expected.push((entry, due));
                (room, held) = (room - 1, held + 1);
            }
        }
    }
    let claimed: Vec<String> = reply.parts().iter().skip(2).step_by(3).map(Reply::text).collect();
    if claimed != expected.iter().map(|(entry, _)| *entry).collect::<Vec<_>>() {
        return violated(CONTRACT, format!("claim.lua: {claimed:?}, not {expected:?}"));
    }
    for (n, (entry, due)) in expected.iter().enumerate() {
        let placed = Due { at: now + CLAIM, state: "claimed".into(), ..(*due).clone() };
        let score = after.score(AGENDA, entry);
        if decoded(engine, after, entry).as_ref() != Some(&placed)
            || reply.part(3 + 3 * n).text().parse().ok() != score
            || reply.part(4 + 3 * n).text().parse().ok() != before.score(AGENDA, entry)
        {
            return violated(CONTRACT, format!("claim.lua: {entry} is not claimed until {}", now + CLAIM));
        }
    }
    for (entry, due) in &all {
        if !claimed.iter().any(|of| of == entry) && decoded(engine, after, entry).as_ref() != Some(due) {
            return violated(CONTRACT, format!("claim.lua: {entry} moved"));
        }
    }
    let noted = if claimed.is_empty() {
        before.text(&call.keys[2]).map(str::to_owned)
    } else {
        Some(format!("{} {}", now + CLAIM, call.args[3]))
    };
    let expires = after.slot(&call.keys[2]).and_then(|slot| slot.expires);
    if after.text(&call.keys[2]).map(str::to_owned) != noted || noted.is_some() && expires.is_none() {
        return violated(CONTRACT, format!("claim.lua: the last claim is not {noted:?}"));
    }
    let next = after.members(AGENDA).iter().map(|(score, _)| engine.due(score.0).at).min().unwrap_or(-1);
    if reply.part(1).text() != next.to_string() || reply.part(0).text() != now.to_string() {
        return violated(CONTRACT, format!("claim.lua: due next at {:?}, not {next}", reply.part(1)));
    }
    Ok(())
}

pub(super) fn take(engine: &Engine, before: &Db, after: &Db, call: &Call, reply: &Reply) -> Step {
    let within = call.args[1].parse::<i64>().unwrap_or(0);
    let (entry, score) = (call.args[2].as_str(), call.args[3].parse::<f64>().ok());
    let (old, now) = (before.score(AGENDA, entry), before.now());
    let was = score.map(|score| engine.due(score));
    let is_claimed = old.is_some() && old == score;
    let present = decoded(engine, before, entry);
    let running = was.map(|was| Due { at: now + RUN, state: "running".into(), ..was });
    let began = present.clone().filter(|due| within > 0 && due.at >= now + RUN - within);
    let is_ours = is_claimed || began.is_some() && began.map(|due| Due { at: now + RUN, ..due }) == running;
    let expected = if is_claimed { running } else { present };
    let taken = reply.part(0).text();
    let right = taken.is_empty() || taken.parse().ok() == after.score(AGENDA, entry);
    if decoded(engine, after, entry) != expected || !right || taken.is_empty() == is_ours {
        return violated(
            CONTRACT,
            format!("take.lua: {entry} is {:?}, not {expected:?}; {taken:?}", decoded(engine, after, entry)),
        );
    }
    Ok(())
}

pub(super) fn cancel(engine: &Engine, before: &Db, after: &Db, call: &Call) -> Step {
    let at = call.args[0].parse::<i64>().unwrap_or(0);
    for entry in &call.args[1..] {
        let (old, new) = (decoded(engine, before, entry), decoded(engine, after, entry));
        let expected = old.clone().and_then(|due| {
            let is_asked = !matches!(due.trigger, 1 | 2 | 5);
            let ahead = if due.state == "urgent" { 1 } else { 1_000 };
            let is_later = due.at > at && due.at <= before.now() + ahead;
            let stays = match due.state.as_str() {
                "urgent" => is_later,
                "scheduled" => is_later && is_asked,
                "claimed" => is_asked,
                _ => false,
            };
            let is_rechecked = due.state == "running" || !matches!(due.trigger, 2 | 5);
            let state = if due.priority > 0 { "urgent" } else { "scheduled" };
            match stays {
                true => Some(due),
                false => is_rechecked.then(|| Due { at: before.now() + 1, state: state.into(), trigger: 5, ..due }),
            }
        });
        if new != expected {
            return violated(CONTRACT, format!("cancel.lua: {entry}, which was {old:?}, became {new:?}"));
        }
    }
    Ok(())
}

pub(super) fn finish(engine: &Engine, before: &Db, after: &Db, call: &Call) -> Step {
    let now = before.now();
    let counters = call.args[4].parse::<usize>().unwrap_or(0);
    // Another program's texts in their place stop no entry.
    let is_strange = [DEAD_LETTERS, calls::REASONS, STATS].into_iter().any(|key| before.text(key).is_some());
    for pair in call.args[5..5 + 2 * counters].chunks_exact(2) {
        let count = |db: &Db| db.field(STATS, &pair[0]).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        if is_strange {
            break;
        }
        if count(after) != count(before) + pair[1].parse::<i64>().unwrap_or(0) || after.field(STATS, "since").is_none()
        {
            return violated(COUNTER, format!("finish.lua: {} was not counted", pair[0]));
        }
        if !call.args[1].is_empty() && after.field(STATS, "last") != Some(&call.args[1]) {
            return violated(CONTRACT, "finish.lua: the last outcome is another");
        }
    }
    for task in call.args[5 + 2 * counters..].chunks_exact(4) {
        let [entry, score, what, arg] = task else { continue };
        let (old, new) = (decoded(engine, before, entry), decoded(engine, after, entry));
        let number = arg.parse::<i64>().unwrap_or(0);
        let is_ours = before.score(AGENDA, entry).is_some() && before.score(AGENDA, entry) == score.parse().ok();
        if !is_ours {
            if old != new {
                return violated(CONTRACT, format!("finish.lua: {entry} is another's, and moved to {new:?}"));
            }
            continue;
        }
        let was = old.clone().unwrap_or(Due { at: 0, state: String::new(), trigger: 0, priority: 0 });
        let scheduled = |trigger| Some(Due { at: number, state: "scheduled".into(), trigger, priority: 0 });
        let expected = match what.as_str() {
            "at" => scheduled(2),
            "recheck" => scheduled(5),
            "in" => {
                let state = if was.priority > 0 { "urgent" } else { "scheduled" };
                Some(Due { at: now + number.max(1), state: state.into(), ..was })
            }
            _ => None,
        };
        if new != expected {
            return violated(CONTRACT, format!("finish.lua: {entry} is {new:?}, not {expected:?}"));
        }
        let soon = expected.is_some_and(|due| due.at < now + 5_000);
        if soon == after.published.is_empty() {
            return violated(CONTRACT, format!("finish.lua: signals {:?}", after.published));
        }
        if is_strange {
            continue;
        }
        let (letter, reason) = (after.score(DEAD_LETTERS, entry), after.field(calls::REASONS, entry));
        let is_dead = match what.as_str() {
            "dead" if letter.is_none() => after.members(DEAD_LETTERS).len() == calls::DEAD,
            "dead" => reason == Some(arg),
            _ => letter.is_none() && reason.is_none(),
        };
        if !is_dead {
            return violated(CONTRACT, format!("finish.lua: the dead letter of {entry} is {letter:?} {reason:?}"));
        }
    }
    Ok(())
}
