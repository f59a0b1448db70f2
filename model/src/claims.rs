//! Puts, claims and takes by themselves: random agendas and calls, for the contracts of the scripts.

use crate::calls::{self, AGENDA, ANSWER, CLAIM, Call, RUN};
use crate::db::Db;
use crate::engine::Engine;
use crate::explorer::Random;
use crate::properties;
use crate::world::{ENTRIES, EPOCH, Step};

/// The longest time that a claim may seem to last beyond its time (ms).
const FAR: i64 = CLAIM + 60_001;
/// Longer than anything may be held (ms).
const HOUR: i64 = 3_600_000;

/// Makes random calls.
///
/// # Errors
/// The contract that does not hold.
pub fn walk(engine: &Engine, seed: u64, steps: usize) -> Step {
    let mut random = Random(seed);
    let mut db = Db::default();
    engine.set_clock(&mut db, EPOCH);
    for _ in 0..steps {
        let entry = ENTRIES[random.below(ENTRIES.len())];
        let now = db.now();
        let mut any = |of: &[i64]| of[random.below(of.len())];
        match any(&[0, 0, 1, 2, 2, 3, 4, 4, 5]) {
            0 => {
                let (at, bits) = (
                    now + any(&[-2, 0, 1, CLAIM - 1, CLAIM, CLAIM + RUN, FAR, CLAIM + HOUR, 2 * HOUR]),
                    any(&[1, 17, 33, 49]),
                );
                let trigger = any(&[0, 1]);
                let score = match any(&[0, 0, 1, 2]) {
                    0 => scheduled(at, trigger),
                    1 => urgent(at, trigger),
                    _ => held(at, bits - trigger),
                };
                engine.command(&mut db, &["ZADD", AGENDA, &score, entry]);
            }
            1 => _ = engine.command(&mut db, &["ZREM", AGENDA, entry]),
            2 => {
                let (number, answered) = (1 + random.below(3) as u64, random.below(3) as u64);
                run(engine, &mut db, &calls::claim(random.below(2), 1 + random.below(2), number, answered))?;
            }
            3 => {
                let claims_end = now + any(&[-2, 0, CLAIM - 1, CLAIM]);
                let again = Some(any(&[0, 1, ANSWER, RUN])).filter(|_| random.below(2) == 0);
                run(engine, &mut db, &calls::take(entry, &held(claims_end, [1, 17][random.below(2)]), again))?;
            }
            5 => {
                let at = any(&[0, now - 1, now, now + 1, now + 5]);
                let (how, trigger) = (["due", "there", "keep", "bulk"][random.below(4)], random.below(6) as u8);
                run(engine, &mut db, &calls::due(how, trigger, at, &[entry]))?;
            }
            _ => engine.set_clock(&mut db, now + any(&[1, 1, 2, CLAIM])),
        }
    }
    Ok(())
}

/// Returns the score of an entry that is due then.
fn scheduled(at: i64, bits: i64) -> String {
    format!("{at}.{:06}", bits * 1_000_000 / 64)
}

/// Returns the score of an entry of a bulk that is due then.
fn urgent(at: i64, bits: i64) -> String {
    below_zero(30_000_000_000_000 - at, bits)
}

/// Returns the score of an entry that is claimed or running until then.
fn held(at: i64, bits: i64) -> String {
    below_zero(20_000_000_000_000 - at, bits)
}

fn below_zero(distance: i64, bits: i64) -> String {
    // The fraction of a negative number counts from the integer below.
    match bits {
        0 => format!("-{distance}.000000"),
        _ => format!("-{}.{:06}", distance - 1, (64 - bits) * 1_000_000 / 64),
    }
}

fn run(engine: &Engine, db: &mut Db, call: &Call) -> Step {
    db.published.clear();
    let before = db.clone();
    let reply = engine.run(db, call);
    properties::after_script(engine, &before, db, call, &reply)
}
