//! Codecs that exist twice: scripts and Rust agree on them.
use crate::support::TestRedis;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use samovar::agenda::{Due, State};
use samovar::entry::{Outcome, Priority, Trigger, Version};
use samovar::redis::RedisTime;
use samovar::store::{LastAttempt, Meta, Rechecks};

fn any_due() -> impl Strategy<Value = Due> {
    let states = prop_oneof![Just(State::Urgent), Just(State::Scheduled), Just(State::Claimed), Just(State::Running)];
    let triggers = prop_oneof![
        Just(Trigger::Cron),
        Just(Trigger::Invalidation),
        Just(Trigger::Expiry),
        Just(Trigger::Demand),
        Just(Trigger::Manual),
        Just(Trigger::Recheck)
    ];
    let priorities = prop_oneof![Just(Priority::Normal), Just(Priority::Bulk), Just(Priority::High)];
    (0_i64..5_000_000_000_000, states, triggers, priorities).prop_map(|(at, state, trigger, priority)| Due {
        at: RedisTime::from_millis(at),
        state,
        trigger,
        priority: match state {
            State::Urgent => priority.max(Priority::Bulk),
            State::Scheduled => Priority::Normal,
            State::Claimed | State::Running => priority,
        },
    })
}

#[test]
fn scripts_and_rust_agree_on_scores() {
    const SCRIPT: &str = concat!(
        include_str!("../src/agenda/lua/score.lua"),
        "local reply = {}
        for i, score in ipairs(ARGV) do
          local at, state, trigger, priority = decode(tonumber(score))
          reply[2 * i - 1] = string.format('%.0f %s %d %d', at, state, trigger, priority)
          reply[2 * i] = encode(at, state, trigger, priority)
        end
        return reply"
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let redis = runtime.block_on(TestRedis::start());
    let agree = |dues: Vec<Due>| {
        let scores: Vec<String> = dues.iter().map(|due| format!("{:.6}", due.score())).collect();
        let words: Vec<&str> = ["EVAL", SCRIPT, "0"].into_iter().chain(scores.iter().map(String::as_str)).collect();
        let read: Vec<String> = runtime.block_on(redis.ask(&words));
        for ((due, score), read) in dues.iter().zip(&scores).zip(read.chunks_exact(2)) {
            let Due { at, state, trigger, priority } = due;
            let state = format!("{state:?}").to_lowercase();
            prop_assert_eq!(&read[0], &format!("{at} {state} {} {}", *trigger as u8, *priority as u8));
            prop_assert_eq!(&read[1], score);
            prop_assert_eq!(Due::from_score(read[1].parse().unwrap()), *due);
        }
        Ok(())
    };
    let mut runner = TestRunner::new(Config::with_cases(32));
    runner.run(&proptest::collection::vec(any_due(), 1..200), agree).unwrap();
}

/// Its triggers 6 and 7 were a cron and a manual one that owed a recheck.
#[test]
fn scripts_and_rust_read_scores_of_the_previous_version() {
    const SCRIPT: &str = concat!(
        include_str!("../src/agenda/lua/score.lua"),
        "local at, state, trigger, priority = decode(tonumber(ARGV[1]))
        return string.format('%.0f %s %d %d', at, state, trigger, priority)"
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let redis = runtime.block_on(TestRedis::start());
    let at = RedisTime::from_millis(1_732_270_000_123);
    for (state, priority) in
        [(State::Urgent, Priority::High), (State::Scheduled, Priority::Normal), (State::Running, Priority::Bulk)]
    {
        for (trigger, written) in [(Trigger::Cron, 6_u8), (Trigger::Manual, 7)] {
            let due = Due { at, state, trigger, priority };
            let score = due.score() + f64::from(written - trigger as u8) / 64.0;
            assert_eq!(Due::from_score(score), due);
            let read: String = runtime.block_on(redis.ask(&["EVAL", SCRIPT, "0", &format!("{score:.6}")]));
            let state = format!("{state:?}").to_lowercase();
            assert_eq!(read, format!("{at} {state} {} {}", trigger as u8, priority as u8));
        }
    }
}

/// An entry's metadata, and whether a worker of the previous version wrote them.
#[derive(Clone, Debug)]
struct Known {
    times: [i64; 4],
    hash: String,
    fetched_at: i64,
    content_since: i64,
    last_attempt: LastAttempt,
    /// The value's, and the one that was announced.
    versions: [Option<Version>; 2],
    previous: bool,
}

fn any_known() -> impl Strategy<Value = Known> {
    let time = || 1_i64..5_000_000_000_000;
    let outcomes = [Outcome::Warmed, Outcome::Unchanged, Outcome::Deferred, Outcome::Gone, Outcome::Failed];
    let triggers = [Trigger::Cron, Trigger::Invalidation, Trigger::Expiry, Trigger::Demand, Trigger::Recheck];
    let attempt = (0..outcomes.len(), 0..triggers.len(), any::<bool>(), prop_oneof![Just(0), time()], 0_u32..4);
    let notes =
        (attempt, any::<bool>(), 0_u32..9).prop_map(move |((o, t, storm, attempted, crashes), tagged, failures)| {
            LastAttempt {
                outcome: Some(outcomes[o]),
                trigger: Some(triggers[t]),
                storm,
                attempted: RedisTime::from_millis(attempted),
                crashes: if attempted > 0 { crashes } else { 0 },
                failures,
                rechecks: tagged.then(|| Rechecks::new(RedisTime::from_millis(1), "h".to_owned(), storm)),
                tags: if tagged { vec![r#""t":1 ~@/ {"d":3}"#.to_owned()] } else { Vec::new() },
                ..LastAttempt::default()
            }
        });
    let times = [time().boxed(), time().boxed(), (0_i64..2).boxed(), (0_i64..9_000).boxed()];
    let zero_or = |some: BoxedStrategy<i64>| prop_oneof![Just(0), some];
    (times, "-|[0-9A-Za-z]{1,11}", zero_or(time().boxed()), zero_or(time().boxed()), notes, versions(), any::<bool>())
        .prop_map(|(times, hash, fetched_at, content_since, last_attempt, versions, previous)| {
            let fetched_at = if fetched_at == 0 { times[0] } else { fetched_at };
            let versions = if previous { [None; 2] } else { versions };
            Known { times, hash, fetched_at, content_since, last_attempt, versions, previous }
        })
}

/// Two versions, or none, near one another as well as far apart.
fn versions() -> impl Strategy<Value = [Option<Version>; 2]> {
    let number = prop_oneof![0_u64..20, any::<u64>(), (u64::MAX - 20)..=u64::MAX];
    let pair = (proptest::option::of(number), prop_oneof![Just(None), Just(Some(0_i64)), (-9_i64..9).prop_map(Some)]);
    pair.prop_flat_map(|(a, by)| {
        let near = a.zip(by).map(|(a, by)| a.saturating_add_signed(by));
        (Just(a), prop_oneof![Just(near), proptest::option::of(any::<u64>())])
    })
    .prop_map(|(a, b)| [a, b].map(|number| number.map(Version::new)))
}

/// A version as scripts have it.
fn digits(version: Option<Version>) -> String {
    version.map(|version| version.to_string()).unwrap_or_default()
}

/// Beyond what doubles tell apart, too.
#[test]
fn scripts_and_rust_agree_on_which_version_is_lower() {
    const SCRIPT: &str = concat!(
        include_str!("../src/store/lua/meta.lua"),
        "local reply = {}
        for i = 1, #ARGV, 2 do reply[#reply + 1] = lower(ARGV[i], ARGV[i + 1]) and 1 or 0 end
        return reply"
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let redis = runtime.block_on(TestRedis::start());
    let agree = |pairs: Vec<[Option<Version>; 2]>| {
        let mut words = vec!["EVAL".to_owned(), SCRIPT.to_owned(), "0".to_owned()];
        words.extend(pairs.iter().flatten().map(|version| digits(*version)));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let lower: Vec<u8> = runtime.block_on(redis.ask(&words));
        for ([a, b], lower) in pairs.iter().zip(lower) {
            prop_assert_eq!(lower == 1, a < b, "{:?} {:?}", a, b);
        }
        Ok(())
    };
    let mut runner = TestRunner::new(Config::with_cases(32));
    runner.run(&proptest::collection::vec(versions(), 1..200), agree).unwrap();
}

/// The note as the previous version wrote it, with the last attempt in it.
fn note_of_the_previous_version(last_attempt: &LastAttempt) -> String {
    let mut json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&last_attempt.to_json()).unwrap();
    let outcome =
        last_attempt.outcome.filter(|outcome| *outcome != Outcome::Warmed).map_or(-1, |outcome| outcome as i64);
    let trigger =
        last_attempt.trigger.filter(|trigger| *trigger != Trigger::Expiry).map_or(-1, |trigger| trigger as i64);
    json.extend((outcome >= 0).then(|| ("o".to_owned(), outcome.into())));
    json.extend((trigger >= 0).then(|| ("t".to_owned(), trigger.into())));
    json.extend(
        (last_attempt.attempted > RedisTime::ZERO).then(|| ("a".to_owned(), last_attempt.attempted.as_millis().into())),
    );
    json.extend((last_attempt.crashes > 0).then(|| ("d".to_owned(), last_attempt.crashes.into())));
    json.extend(last_attempt.storm.then(|| ("s".to_owned(), 1.into())));
    serde_json::Value::Object(json).to_string()
}

#[test]
fn scripts_and_rust_agree_on_metadata() {
    const SCRIPT: &str = concat!(
        include_str!("../src/store/lua/meta.lua"),
        "local reply = {}
        for i = 1, #ARGV, 12 do
          local packed = write_meta(unpack(ARGV, i, i + 11))
          local fields = {read_meta(packed)}
          local attempt = {read_attempt(fields[6], fields[9])}
          reply[#reply + 1] = packed
          reply[#reply + 1] = table.concat(fields, ' ', 1, 5) .. ' ' .. table.concat(fields, ' ', 7, 12)
          reply[#reply + 1] = string.format('%d %d %s %d %.0f', unpack(attempt))
        end
        return reply"
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let redis = runtime.block_on(TestRedis::start());
    let agree = |all: Vec<Known>| {
        let mut words = vec!["EVAL".to_owned(), SCRIPT.to_owned(), "0".to_owned()];
        let since =
            |known: &Known| if known.content_since > 0 { known.content_since.to_string() } else { String::new() };
        for known in &all {
            words.extend(known.times.map(|time| time.to_string()));
            let old = note_of_the_previous_version(&known.last_attempt);
            let (attempt, json) = if known.previous {
                (String::new(), old)
            } else {
                (known.last_attempt.attempt(), known.last_attempt.to_json())
            };
            words.extend([known.hash.clone(), attempt, known.fetched_at.to_string(), since(known), json]);
            words.extend(known.versions.map(digits));
            words.push(known.versions[1].map(|_| known.times[0].to_string()).unwrap_or_default());
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let replies: Vec<String> = runtime.block_on(redis.ask(&words));
        for ((known, reply), words) in all.iter().zip(replies.chunks_exact(3)).zip(words[3..].chunks_exact(12)) {
            let [packed, fields, attempt] = reply else { unreachable!() };
            let head = format!("{} {} {} {} {}", words[0], words[1], words[2], words[3], words[4]);
            prop_assert_eq!(fields, &format!("{head} {}", words[6..].join(" ")));
            let LastAttempt { outcome, trigger, storm, attempted, crashes, .. } = known.last_attempt;
            let (outcome, trigger, storm) =
                (outcome.unwrap() as u8, trigger.unwrap() as u8, if storm { "1" } else { "" });
            prop_assert_eq!(attempt, &format!("{trigger} {crashes} {storm} {outcome} {attempted}"));
            let meta = Meta::parse(packed).unwrap();
            let times = [meta.validated_at, meta.own_expiry, meta.invalidated.unwrap_or_default()];
            prop_assert_eq!(&times.map(RedisTime::as_millis)[..], &known.times[..3]);
            prop_assert_eq!(meta.stale_for.as_millis(), u128::try_from(known.times[3]).unwrap());
            prop_assert_eq!(
                (&meta.hash, meta.fetched_at.as_millis(), meta.content_since.as_millis()),
                (&known.hash, known.fetched_at, known.content_since)
            );
            let attempted =
                if attempted == RedisTime::ZERO { RedisTime::from_millis(known.times[0]) } else { attempted };
            let [version, announced] = known.versions;
            prop_assert_eq!(meta.announced, announced);
            prop_assert_eq!(&meta.last_attempt, &LastAttempt { attempted, version, ..known.last_attempt.clone() });
            let attempt = if words[5].is_empty() { 0 } else { words[5].len() + 1 };
            let room = attempt + words[8].len();
            prop_assert!(
                room <= note_of_the_previous_version(&known.last_attempt).len(),
                "more room than before: {}",
                packed
            );
        }
        Ok(())
    };
    let mut runner = TestRunner::new(Config::with_cases(32));
    runner.run(&proptest::collection::vec(any_known(), 1..100), agree).unwrap();
}
