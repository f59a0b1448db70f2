//! The limits of an upstream: random requests of two workers through its gates, and what must hold.
//!
//! Gates do what `src/source/limits/` does: each tells the sum of what it has spent, until it hears that this is
//! counted, and the permits of requests whose end was not heard go back with the next command.

use std::collections::BTreeMap;

use crate::calls::{self, Ended, Limits, SPENT, Told};
use crate::commands::Reply;
use crate::db::{Db, Value};
use crate::engine::Engine;
use crate::explorer::Random;
use crate::properties::{BOUNDED, BUDGET, CONTRACT, COUNTED, PERMITS, SCRIPT_FAILS, TOLD_SPENT};
use crate::scripts::Script;
use crate::world::{EPOCH, Rule, Step, Violation, violated};

/// The longest request (ms).
const LONGEST: i64 = 2_000;
/// The most tokens of a prompt and of an answer.
const TOKENS: (usize, usize) = (20, 60);
/// The longest pause that the upstream asks for (ms).
const BUSY: i64 = 900;
/// The time after which no command is under way any more (ms).
const LATEST: i64 = 3_600_000;

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
    /// Names the process.
    process: String,
    /// The tokens that its requests have cost.
    cost: i64,
    /// The sum that it tells, the part that it heard to be counted, and the sum that the last command told which was
    /// not answered.
    spent: i64,
    counted: i64,
    unheard: i64,
    /// Ids of permits that go back with the next command.
    abandoned: Vec<String>,
    /// When it was admitted last, or began to ask.
    asked: i64,
}

impl Gate {
    fn of(gate: usize, serial: u32) -> Self {
        Self { process: format!("w{gate}-{serial}"), ..Self::default() }
    }

    fn owes(&self) -> bool {
        self.unheard > self.counted
    }

    /// Notes that the command with this sum was answered, or was not.
    fn heard(&mut self, sum: i64, is_answered: bool) {
        let of = if is_answered { &mut self.counted } else { &mut self.unheard };
        *of = sum.max(*of);
    }
}

/// The course of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Well,
    /// It does not arrive.
    Away,
    /// It is carried out, and its reply is lost.
    Lost,
    /// Its sender gives up, and it is carried out later.
    Late,
}

/// A sum of tokens for each process.
type Sums = BTreeMap<String, i64>;

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
    /// The highest sums that were told, and those of them that Redis has not lost.
    told: Sums,
    counted: Sums,
    /// The tokens that may still be counted since Redis last lost data: those spent or first confirmed since.
    may_count: Option<i64>,
    /// Commands that are carried out later.
    late: Vec<calls::Call>,
    /// Redis may lose data; the window's hash, and what was counted, as it may go back to.
    is_lossy: bool,
    kept: Option<(Vec<(String, String)>, Sums)>,
    /// The time by which the clock went on or back (ms).
    passed: i64,
    /// The clock was set back: a window that was over may go on.
    is_set_back: bool,
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
        gates: [Gate::of(0, 0), Gate::of(1, 0)],
        requests: Vec::new(),
        refused: String::new(),
        serial: 0,
        told: Sums::new(),
        counted: Sums::new(),
        may_count: None,
        late: Vec::new(),
        is_lossy: seed % 4 > 1 && random.below(2) == 0,
        kept: None,
        passed: 0,
        is_set_back: false,
        without,
    };
    engine.set_clock(&mut upstream.db, EPOCH);
    let is_set_back = random.below(4) == 0;
    for _ in 0..steps {
        let gate = random.below(2);
        use Course::{Away, Late, Lost, Well};
        let course = [Well, Well, Well, Well, Away, Lost, Late][random.below(7)];
        match random.below(18) {
            0..=5 => upstream.take(engine, &mut random, gate, course)?,
            6..=9 => upstream.end(engine, &mut random, course)?,
            10 => upstream.refresh(engine, gate, course)?,
            11 => upstream.pass(engine, &mut random, 1)?,
            12 => upstream.pass(engine, &mut random, 100)?,
            13 if upstream.passed < LATEST / 2 && (!is_plain || random.below(4) == 0) => {
                let time = [900, 6_000, 11_000, 130_000][random.below(4)];
                upstream.pass(engine, &mut random, time)?;
            }
            14 if random.below(3) == 0 => upstream.die(gate),
            15 | 16 if !upstream.late.is_empty() => upstream.arrive(engine, &mut random)?,
            15 if is_set_back && upstream.passed < LATEST / 2 && random.below(3) == 0 => {
                let time = [4_000, 600_000][random.below(2)];
                upstream.pass(engine, &mut random, -time)?;
            }
            17 if upstream.is_lossy => upstream.lose(engine, &mut random),
            _ => {}
        }
        upstream.holds()?;
    }
    upstream.rest(engine, &mut random)?;
    upstream.is_forgotten(engine, &mut random)
}

/// Returns what a command tells of the tokens: the process, the sum, and the part that it heard to be counted.
fn told(call: &calls::Call) -> Option<(&str, i64, i64)> {
    let first = match call.script {
        Script::ReturnPermit => 3,
        Script::Inspect => 2,
        _ => return None,
    };
    Some((&call.args[first], call.args[first + 1].parse().ok()?, call.args[first + 2].parse().ok()?))
}

impl Upstream {
    fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn now(&self) -> i64 {
        self.db.now()
    }

    /// Returns a number in the window's hash.
    fn read(&self, field: &str) -> i64 {
        self.db.field(SPENT, field).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Returns true if a window goes on.
    fn goes_on(&self) -> bool {
        self.read("ends") > self.now() && self.db.field(SPENT, "tokens").is_some()
    }

    /// Returns the tokens that were counted in the present window.
    fn window(&self) -> i64 {
        if self.goes_on() { self.read("tokens") } else { 0 }
    }

    /// Returns the window's hash.
    fn fields(&self) -> Vec<(String, String)> {
        match self.db.slot(SPENT).map(|slot| &*slot.value) {
            Some(Value::Hash(fields)) => {
                fields.iter().map(|(field, value)| (field.as_str().to_owned(), value.as_str().to_owned())).collect()
            }
            _ => Vec::new(),
        }
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

    /// Sends a command; `None` where no reply comes.
    fn send(
        &mut self,
        engine: &Engine,
        gate: usize,
        course: Course,
        call: impl Fn(&[String]) -> calls::Call,
    ) -> Result<Option<Reply>, Violation> {
        let call = call(&self.gates[gate].abandoned);
        match course {
            Course::Away => Ok(None),
            Course::Late => {
                self.late.push(call);
                Ok(None)
            }
            Course::Lost => self.carry_out(engine, &call).map(|_| None),
            Course::Well => {
                let reply = self.carry_out(engine, &call)?;
                self.gates[gate].abandoned.clear();
                Ok(Some(reply))
            }
        }
    }

    /// Carries a command out, and checks what it counts and what it leaves of a window that is over.
    fn carry_out(&mut self, engine: &Engine, call: &calls::Call) -> Result<Reply, Violation> {
        let (before, goes_on, was_told) = (self.window(), self.goes_on(), self.is_told());
        let reply = engine.run(&mut self.db, call);
        if let Reply::Error(error) = &reply {
            return violated(SCRIPT_FAILS, format!("{}: {error}", call.script.path()));
        }
        self.tells(was_told, reply.part(2).int())?;
        self.db.published.clear();
        let counted = self.window() - before;
        self.counts(call, counted)?;
        if counted > 0 && !goes_on && self.read("ends") != self.now() + self.limits.window {
            return violated(CONTRACT, format!("a window begins, and has another length\n{}", self.db));
        }
        if call.script == Script::Inspect && !self.goes_on() && self.db.field(SPENT, "tokens").is_some() {
            return violated(CONTRACT, format!("a window that is over keeps its count\n{}", self.db));
        }
        Ok(reply)
    }

    /// Checks the number of tokens that a command counted, and notes them. Without losses these are the ones that no
    /// command told before it. Where Redis lost data, none is counted that it still knows, nor one whose count was
    /// confirmed before the command was sent.
    fn counts(&mut self, call: &calls::Call, tokens: i64) -> Step {
        let mut expected = 0;
        if let Some((process, sum, heard)) = told(call).filter(|_| self.limits.budget > 0) {
            let [told, counted] =
                [&mut self.told, &mut self.counted].map(|sums| sums.entry(process.to_owned()).or_default());
            let before = if self.is_lossy { heard.max(*counted) } else { *told };
            expected = (sum - before).max(0);
            *told = sum.max(*told);
            *counted = if expected > 0 { sum } else { *counted };
        }
        self.may_count = self.may_count.map(|most| most - tokens);
        if tokens != expected || self.may_count.is_some_and(|most| most < 0) {
            let what = format!("{call:?} counts {tokens} tokens, not {expected}: {:?}\n{}", self.counted, self.db);
            return violated(COUNTED, what);
        }
        Ok(())
    }

    /// Returns the tokens whose count was not confirmed when a command was sent that may still be carried out.
    fn unconfirmed(&self) -> i64 {
        let gates = self.gates.iter().map(|gate| (gate.process.as_str(), gate.spent, gate.counted));
        let mut sums = BTreeMap::new();
        for (process, sum, heard) in gates.chain(self.late.iter().filter_map(told)) {
            let (least, most) = sums.entry(process).or_insert((heard, sum));
            (*least, *most) = (heard.min(*least), sum.max(*most));
        }
        sums.values().map(|(least, most)| most - least).sum()
    }

    /// A command arrives long after it was sent.
    fn arrive(&mut self, engine: &Engine, random: &mut Random) -> Step {
        let call = self.late.remove(random.below(self.late.len()));
        self.carry_out(engine, &call).map(|_| ())
    }

    /// Redis loses all of its data, or goes back to an earlier count of the tokens.
    fn lose(&mut self, engine: &Engine, random: &mut Random) {
        match (random.below(3), self.kept.take()) {
            (0, _) => {
                engine.command(&mut self.db, &["DEL", "limits", "permits", SPENT, "reserved"]);
                self.counted.clear();
            }
            (1, Some((fields, counted))) => {
                engine.command(&mut self.db, &["DEL", SPENT]);
                for (field, value) in &fields {
                    engine.command(&mut self.db, &["HSET", SPENT, field, value]);
                }
                self.counted = counted;
            }
            _ => {
                self.kept = Some((self.fields(), self.counted.clone()));
                return;
            }
        }
        self.may_count = Some(self.unconfirmed());
    }

    /// `Gate::ask`.
    fn take(&mut self, engine: &Engine, random: &mut Random, gate: usize, course: Course) -> Step {
        if self.gates[gate].owes() {
            self.refresh(engine, gate, course)?;
            if self.gates[gate].owes() {
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
        // Permits go back with what their requests cost.
        let (is_first, has_owed) = (self.has(Rule::OwedFirst), self.has(Rule::Owed));
        let gate = &mut self.gates[request.gate];
        gate.cost += tokens;
        gate.spent += tokens;
        self.may_count = self.may_count.map(|most| most + tokens);
        let (process, counted) = (gate.process.clone(), gate.counted);
        let sum = if is_first { gate.spent } else { counted + tokens };
        let (limits, ended) = (self.limits, Ended { word, busy, answer });
        let told = Told { process: &process, spent: sum, counted };
        let reply = self.send(engine, request.gate, course, |returned| {
            calls::return_permit(&request.id, limits, ended, told, returned)
        })?;
        let gate = &mut self.gates[request.gate];
        gate.heard(sum, reply.is_some());
        if reply.is_none() {
            gate.abandoned.push(request.id);
            gate.spent -= if has_owed { 0 } else { tokens };
        }
        Ok(())
    }

    /// `Gate::refresh`.
    fn refresh(&mut self, engine: &Engine, gate: usize, course: Course) -> Step {
        let (limits, Gate { process, spent, counted, .. }) = (self.limits, self.gates[gate].clone());
        let told = Told { process: &process, spent, counted };
        let reply = self.send(engine, gate, course, |returned| calls::inspect(limits, told, returned))?;
        self.gates[gate].heard(spent, reply.is_some());
        match reply {
            Some(reply) => self.is_bounded(&reply.part(0).text(), reply.part(1).int()),
            None => Ok(()),
        }
    }

    /// A worker dies, and its permits come back by themselves.
    fn die(&mut self, gate: usize) {
        self.requests.retain(|request| request.gate != gate);
        self.serial += 1;
        self.gates[gate] = Gate::of(gate, self.serial);
    }

    /// Lets time pass. Requests whose time is over end before.
    fn pass(&mut self, engine: &Engine, random: &mut Random, by: i64) -> Step {
        let now = self.now() + by;
        self.passed += by.abs();
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
        if self.is_lossy {
            return Ok(());
        }
        let Limits { most, budget, .. } = self.limits;
        if most > 0 && self.requests.len() > most {
            return violated(PERMITS, format!("{} requests at once, and {most} are allowed", self.requests.len()));
        }
        let counted = self.window();
        let one = TOKENS.0 as i64 + self.longest;
        // Where nothing limits an answer, the estimates may be too low.
        let is_bounded = budget > 0 && self.longest > 0 && !self.is_set_back;
        if is_bounded && counted > budget + one {
            return violated(BUDGET, format!("{counted} of {budget} tokens are spent"));
        }
        Ok(())
    }

    /// Checks that all is counted that the living have spent.
    fn all_is_counted(&self) -> Step {
        for Gate { process, cost, .. } in &self.gates {
            let counted = self.told.get(process).copied().unwrap_or(0);
            if !self.is_lossy && counted != *cost {
                return violated(COUNTED, format!("{process} has spent {cost} tokens, and {counted} are counted"));
            }
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
        while !self.late.is_empty() {
            self.arrive(engine, random)?;
        }
        self.all_is_counted()?;
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

    /// Once no command can be late any more, nothing is kept of processes, nor of a window that is over.
    fn is_forgotten(&mut self, engine: &Engine, random: &mut Random) -> Step {
        // Or as long, by a clock that was set back.
        let time = [4 * LATEST, -4 * LATEST][random.below(2)];
        self.pass(engine, random, time)?;
        (self.is_lossy, self.counted, self.may_count) = (true, Sums::new(), None);
        self.die(0);
        self.gates[0].spent = 1;
        for _ in 0..2 {
            self.refresh(engine, 0, Course::Well)?;
            let processes = self.fields().iter().filter(|(field, _)| field.starts_with("process:")).count();
            if processes != usize::from(self.limits.budget > 0) {
                return violated(CONTRACT, format!("{processes} processes are known\n{}", self.db));
            }
            self.pass(engine, random, self.limits.window + 1_000)?;
        }
        let time = [LATEST, -2 * LATEST][random.below(2)];
        self.pass(engine, random, time)?;
        self.refresh(engine, 0, Course::Well)?;
        match self.db.slot(SPENT) {
            Some(_) => violated(CONTRACT, format!("a window that is over is kept\n{}", self.db)),
            None => Ok(()),
        }
    }
}
