//! The limits of an upstream: random requests of two workers through its gates, and what must hold.
//!
//! Gates do what `src/source/limits/` does: tokens that could not be counted are owed, and the permits of requests
//! whose end was not heard go back with the next command.

use crate::calls::{self, Ended, Limits, SPENT};
use crate::db::Db;
use crate::engine::Engine;
use crate::explorer::Random;
use crate::properties::{BOUNDED, BUDGET, COUNTED, PERMITS, SCRIPT_FAILS, TOLD_SPENT};
use crate::scripts::Script;
use crate::world::{EPOCH, Rule, Step, Violation, violated};

/// The longest request (ms).
const LONGEST: i64 = 2_000;
/// The most tokens of a prompt and of an answer.
const TOKENS: (usize, usize) = (20, 60);
/// The longest pause that the upstream asks for (ms).
const BUSY: i64 = 900;

/// The ends of requests.
const WORDS: [&str; 7] = ["answered", "answered", "answered", "failed", "busy", "dropped", "refused: no money"];

/// A request under way.
#[derive(Clone, Debug)]
struct Request {
    id: String,
    gate: usize,
    began: i64,
    /// The tokens of the prompt, and those of the answer, as it will come.
    cost: (i64, i64),
}

/// A worker's gate.
#[derive(Clone, Debug, Default)]
struct Gate {
    /// Tokens that were spent, and of which no reply says that they are counted.
    owed: i64,
    /// Those of them that are counted all the same.
    again: i64,
    /// Ids of permits that go back with the next command.
    abandoned: Vec<String>,
    /// When it was admitted last, or began to ask.
    asked: i64,
}

/// The course of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Well,
    /// It does not arrive.
    Away,
    /// It is carried out, and its reply is lost.
    Lost,
}

#[derive(Debug)]
struct Upstream {
    db: Db,
    limits: Limits,
    /// The tokens of an answer at most, as requests ask for it; 0 for no limit.
    longest: i64,
    /// The ends that requests have.
    words: &'static [&'static str],
    gates: [Gate; 2],
    requests: Vec<Request>,
    /// The reason of the last refusal.
    refused: String,
    /// The number of permits so far.
    serial: u32,
    /// The tokens that requests have cost, but for those that died with a worker, and those that were counted.
    spent: i64,
    counted: i64,
    /// The clock was set back: a window that was over may go on.
    is_set_back: bool,
    /// Tokens that were counted twice in the present window.
    twice: i64,
    without: Option<Rule>,
}

/// Makes random requests; the gates may lack a rule.
///
/// # Errors
/// The property that does not hold.
pub fn walk(engine: &Engine, seed: u64, steps: usize, without: Option<Rule>) -> Step {
    let mut random = Random(seed);
    let limits = Limits {
        hold: LONGEST + 5_000,
        most: [0, 2, 3][random.below(3)],
        interval: [0, 100_000][random.below(2)],
        early: [0, 200_000][random.below(2)],
        ahead: [0, 300, 1_000][random.below(3)],
        budget: [0, 100, 300][random.below(3)],
        window: 10_000,
    };
    // Half of the walks are of a budget alone.
    let is_plain = seed.is_multiple_of(2);
    let longest = if is_plain { 30 } else { [0, 30, 60][random.below(3)] };
    let limits = if is_plain { Limits { most: 3, interval: 0, budget: 100, ..limits } } else { limits };
    let mut upstream = Upstream {
        db: Db::default(),
        limits,
        longest,
        words: if is_plain { &WORDS[..1] } else { [&WORDS[..], &WORDS[3..4]][random.below(2)] },
        gates: Default::default(),
        requests: Vec::new(),
        refused: String::new(),
        serial: 0,
        spent: 0,
        counted: 0,
        is_set_back: false,
        twice: 0,
        without,
    };
    engine.set_clock(&mut upstream.db, EPOCH);
    let is_set_back = random.below(4) == 0;
    for _ in 0..steps {
        let gate = random.below(2);
        let course = [Course::Well, Course::Well, Course::Well, Course::Away, Course::Lost][random.below(5)];
        match random.below(16) {
            0..=5 => upstream.take(engine, &mut random, gate, course)?,
            6..=9 => upstream.end(engine, &mut random, course)?,
            10 => upstream.refresh(engine, gate, course)?,
            11 => upstream.pass(engine, &mut random, 1)?,
            12 => upstream.pass(engine, &mut random, 100)?,
            13 if !is_plain || random.below(4) == 0 => {
                let time = [900, 6_000, 11_000, 130_000][random.below(4)];
                upstream.pass(engine, &mut random, time)?;
            }
            14 if random.below(3) == 0 => upstream.die(gate),
            15 if is_set_back && random.below(3) == 0 => upstream.pass(engine, &mut random, -600_000)?,
            _ => {}
        }
        upstream.holds()?;
    }
    upstream.rest(engine, &mut random)
}

impl Upstream {
    fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn now(&self) -> i64 {
        self.db.now()
    }

    /// Returns the tokens that were counted in the present window.
    fn window(&self) -> i64 {
        let read = |field| self.db.field(SPENT, field).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        if read("ends") > self.now() { read("tokens") } else { 0 }
    }

    /// Returns true if the log was told in the present window that the budget is spent.
    fn is_told(&self) -> bool {
        let told = self.db.field(SPENT, "told_100").unwrap_or_default();
        self.window() > 0 && told.split(' ').any(|budget| budget == self.limits.budget.to_string())
    }

    /// Checks what a command said of the budget; `was_told` is as of before it.
    fn tells(&self, was_told: bool, said: i64) -> Step {
        let is_spent = self.limits.budget > 0 && self.window() >= self.limits.budget;
        let is_right = if is_spent { self.is_told() && (said == 100) != was_told } else { said != 100 };
        match is_right {
            true => Ok(()),
            false => violated(TOLD_SPENT, format!("said {said}, told before: {was_told}\n{}", self.db)),
        }
    }

    /// Sends a command, and notes what it counted; `None` where no reply comes.
    fn send(
        &mut self,
        engine: &Engine,
        gate: usize,
        course: Course,
        call: impl Fn(&[String]) -> calls::Call,
    ) -> Result<Option<crate::commands::Reply>, Violation> {
        if course == Course::Away {
            return Ok(None);
        }
        let (before, was_told) = (self.window(), self.is_told());
        let call = call(&self.gates[gate].abandoned);
        let reply = engine.run(&mut self.db, &call);
        if let crate::commands::Reply::Error(error) = &reply {
            return violated(SCRIPT_FAILS, format!("{}: {error}", call.script.path()));
        }
        self.tells(was_told, reply.part(2).int())?;
        let after = self.window();
        if before == 0 && after > 0 {
            self.twice = 0;
        }
        let counted = if after >= before { after - before } else { after };
        // Each command but the request for admission counts what is owed.
        let is_counting = match call.script {
            Script::ReturnPermit => self.has(Rule::OwedFirst),
            script => script == Script::Inspect,
        };
        let twice = if is_counting { std::mem::take(&mut self.gates[gate].again) } else { 0 };
        self.counted += counted - twice;
        self.twice += twice;
        self.db.published.clear();
        if course == Course::Lost {
            self.gates[gate].again += counted;
            return Ok(None);
        }
        self.gates[gate].abandoned.clear();
        Ok(Some(reply))
    }

    /// `Gate::ask`.
    fn take(&mut self, engine: &Engine, random: &mut Random, gate: usize, course: Course) -> Step {
        if self.gates[gate].owed > 0 {
            self.refresh(engine, gate, course)?;
            if self.gates[gate].owed > 0 {
                return Ok(());
            }
        }
        self.serial += 1;
        let (now, limits) = (self.now(), self.limits);
        let (id, name) = (format!("g{gate}-{}", self.serial), format!("g{gate}"));
        let prompt = 1 + random.below(TOKENS.0) as i64;
        let waited = if self.gates[gate].asked > 0 { (now - self.gates[gate].asked).max(0) } else { 0 };
        let most = if self.longest > 0 { self.longest } else { TOKENS.1 as i64 };
        let answer = if random.below(2) == 0 { most } else { 1 + random.below(TOKENS.1) as i64 % most };
        let longest = self.longest;
        let reply = self.send(engine, gate, course, |returned| {
            calls::take_permit(&id, (&name, waited), limits, (prompt, longest), returned)
        })?;
        let Some(reply) = reply else {
            // Redis may know it.
            self.gates[gate].abandoned.push(id);
            return Ok(());
        };
        let (reason, wait) = (reply.part(0).text(), reply.part(1).int());
        self.is_bounded(&reason, wait)?;
        if !reason.is_empty() {
            self.refused = reason;
            let asked = &mut self.gates[gate].asked;
            *asked = if *asked == 0 { now } else { *asked };
            return Ok(());
        }
        self.gates[gate].asked = 0;
        self.requests.push(Request { id, gate, began: now + wait / 1_000, cost: (prompt, answer) });
        Ok(())
    }

    /// Checks that a refusal is for no longer than what it is for can last.
    fn is_bounded(&self, reason: &str, wait: i64) -> Step {
        let Limits { interval, early, ahead, window, .. } = self.limits;
        let most = match reason {
            "" => ahead * 1_000,
            "rate" => early.max(0) + ahead.max(1_000) * 1_000 + interval,
            "tokens" => window * 1_000,
            "breaker" => 120_000_000,
            "retry-after" => BUSY * 1_000,
            // A refused account.
            _ => 3_600_000_000,
        };
        if wait > most {
            return violated(BOUNDED, format!("refused for {wait} µs, {most} at most: {reason}"));
        }
        Ok(())
    }

    /// `Permit::done`, of some request.
    fn end(&mut self, engine: &Engine, random: &mut Random, course: Course) -> Step {
        if self.requests.is_empty() {
            return Ok(());
        }
        let request = self.requests.remove(random.below(self.requests.len()));
        let (prompt, answer) = request.cost;
        let word = self.words[random.below(self.words.len())];
        let (tokens, answer, busy) = match word {
            "answered" => (prompt + answer, answer, 0),
            "busy" | "refused: no money" => (0, 0, BUSY),
            _ => (0, 0, 0),
        };
        let tokens = if self.limits.budget > 0 { tokens } else { 0 };
        self.spent += tokens;
        // Permits go back with what their requests cost.
        let owed = if self.has(Rule::OwedFirst) { self.gates[request.gate].owed } else { 0 };
        let (limits, ended) = (self.limits, Ended { word, busy, tokens: tokens + owed, answer });
        let reply = self.send(engine, request.gate, course, |returned| {
            calls::return_permit(&request.id, limits, ended, returned)
        })?;
        let has_owed = self.has(Rule::Owed);
        let gate = &mut self.gates[request.gate];
        if reply.is_some() {
            gate.owed -= owed;
        } else {
            gate.abandoned.push(request.id);
            gate.owed += if has_owed { tokens } else { 0 };
        }
        Ok(())
    }

    /// `Gate::refresh`.
    fn refresh(&mut self, engine: &Engine, gate: usize, course: Course) -> Step {
        let (limits, owed) = (self.limits, self.gates[gate].owed);
        let reply = self.send(engine, gate, course, |returned| calls::inspect(limits, owed, returned))?;
        if let Some(reply) = reply {
            self.gates[gate].owed = 0;
            self.is_bounded(&reply.part(0).text(), reply.part(1).int())?;
        }
        Ok(())
    }

    /// A worker dies, and its permits come back by themselves.
    fn die(&mut self, gate: usize) {
        self.requests.retain(|request| request.gate != gate);
        self.spent -= self.gates[gate].owed - self.gates[gate].again;
        self.gates[gate] = Gate::default();
    }

    /// Lets time pass. Requests whose time is over end before.
    fn pass(&mut self, engine: &Engine, random: &mut Random, by: i64) -> Step {
        let now = self.now() + by;
        if by < 0 {
            self.requests.iter_mut().for_each(|request| request.began += by);
            self.gates.iter_mut().for_each(|gate| gate.asked = 0);
            self.is_set_back = true;
        }
        while self.requests.iter().any(|request| now > request.began + LONGEST) {
            self.end(engine, random, Course::Well)?;
        }
        engine.set_clock(&mut self.db, now);
        Ok(())
    }

    fn holds(&self) -> Step {
        let Limits { most, budget, .. } = self.limits;
        if most > 0 && self.requests.len() > most {
            return violated(PERMITS, format!("{} requests at once, and {most} are allowed", self.requests.len()));
        }
        let counted = self.window();
        let one = TOKENS.0 as i64 + self.longest;
        // Where nothing limits an answer, the estimates may be too low.
        let is_bounded = budget > 0 && self.longest > 0 && !self.is_set_back;
        if is_bounded && counted - self.twice > budget + one {
            return violated(BUDGET, format!("{counted} of {budget} tokens are spent, {} counted twice", self.twice));
        }
        let owed: i64 = self.gates.iter().map(|gate| gate.owed - gate.again).sum();
        if self.counted + owed != self.spent {
            let (counted, spent) = (self.counted, self.spent);
            return violated(COUNTED, format!("{spent} tokens are spent, {counted} counted, and {owed} owed"));
        }
        Ok(())
    }

    /// Once all requests have ended, and breakers and pauses with them, the next one is admitted.
    fn rest(&mut self, engine: &Engine, random: &mut Random) -> Step {
        while !self.requests.is_empty() {
            self.end(engine, random, Course::Well)?;
        }
        for gate in 0..2 {
            self.refresh(engine, gate, Course::Well)?;
        }
        let held = 2 * self.limits.hold + self.limits.ahead + 2_000;
        for by in [held, 11_000, 130_000, 3_600_000, held, 11_000, 3_000] {
            self.pass(engine, random, by)?;
            self.take(engine, random, 0, Course::Well)?;
            if !self.requests.is_empty() {
                return Ok(());
            }
        }
        violated(BOUNDED, format!("the upstream admits nothing any more: {}\n{}", self.refused, self.db))
    }
}
