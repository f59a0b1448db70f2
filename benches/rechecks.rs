//! A simulation of rechecks: rules and lists of steps against upstreams that lag. It needs neither Redis nor a network.
//! docs/rechecks.md discusses the result. All rules meet the same edits and lags; the same seed gives the same output.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::fmt;

const USAGE: &str = "usage: cargo bench --bench rechecks -- [--seed N] [--runs N] [--list 1,5,30] [--all]
--list: the list for the comparison of rules; --all: a row for each upstream and number of replicas too";
const SEED: u64 = 16;
const RUNS: u64 = 10_000;
/// The time from a publish to the start of the fetch that answers it.
const HEARD_AFTER: f64 = 0.005;
/// The shortest and the longest fetch. The upstream reads its content halfway.
const FETCH: (f64, f64) = (0.005, 0.2);
/// The longest time from the first edit of a burst to its last.
const BURST: f64 = 5.0;
/// The time for which a run is observed after its last edit: the TTL of the value.
const TTL: f64 = 300.0;
/// The contents of volatile answers begin here.
const VOLATILE: u32 = 1_000;

/// A value's content as its hash identifies it: equal or different.
type Content = u32;

/// Splitmix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
struct Random(u64);

impl Random {
    fn of(seed: u64, parts: [u64; 4]) -> Self {
        Self(parts.iter().fold(seed, |state, part| Self(state ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93)).next()))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn within(&mut self, (from, to): (f64, f64)) -> f64 {
        from + (to - from) * self.unit()
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }
}

/// The edits of a run.
#[derive(Clone, Copy, PartialEq)]
enum Edits {
    Single,
    /// Two to five edits, each with new content and each published.
    Burst,
    /// A burst whose last edit restores the content before the last: A, B, A.
    Revert,
    /// A burst with one publish, after its last edit.
    OnePublish,
    /// A single edit of content that differs in every answer, because it contains the time of the answer.
    Volatile,
    /// A publish without an edit.
    Unchanged,
}

impl fmt::Display for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Single => "single edits",
            Self::Burst => "bursts",
            Self::Revert => "bursts with a revert",
            Self::OnePublish => "bursts with one publish",
            Self::Volatile => "volatile content",
            Self::Unchanged => "publishes without an edit",
        })
    }
}

/// The time from an edit until a replica shows it.
#[derive(Clone, Copy)]
enum Lag {
    None,
    /// 0 to 0.5 s, drawn for each edit.
    Short,
    /// 0 to 3 s, drawn for each edit.
    Uniform,
    /// 0 to 3 s, drawn once for each replica.
    Fixed,
    /// Exponential with a mean of 1 s, drawn for each edit.
    Exponential,
    /// One replica with this lag; the others are `Uniform`.
    OneSlow(u8),
    /// Edge caches that other readers fill again as soon as a copy is 10 s old.
    Cdn,
}

const LAGS: [Lag; 5] = [Lag::Uniform, Lag::Fixed, Lag::Exponential, Lag::OneSlow(20), Lag::Cdn];

impl Lag {
    /// Returns a number for the seed.
    fn number(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Uniform => 1,
            Self::Fixed => 2,
            Self::Exponential => 3,
            Self::Cdn => 4,
            Self::Short => 5,
            Self::OneSlow(slow) => 100 + u64::from(slow),
        }
    }
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("no lag"),
            Self::Short => f.pad("0 to 0.5 s per edit"),
            Self::Uniform => f.pad("0 to 3 s per edit"),
            Self::Fixed => f.pad("0 to 3 s per replica"),
            Self::Exponential => f.pad("exponential, mean 1 s"),
            Self::OneSlow(slow) => f.pad(&format!("one replica of {slow} s")),
            Self::Cdn => f.pad("CDN, max-age 10 s"),
        }
    }
}

/// The edits and the replicas of a run.
struct World {
    /// The times of the edits; edit `i` makes version `i + 1`.
    edits: Vec<f64>,
    /// The first edit that is published.
    first_published: usize,
    /// The content of each version, from version 0.
    contents: Vec<Content>,
    is_volatile: bool,
    /// For each replica, when it shows each edit. A replica applies edits in order.
    shown: Vec<Vec<f64>>,
}

impl World {
    fn draw(kind: Edits, lag: Lag, replicas: usize, random: &mut Random) -> Self {
        let is_burst = matches!(kind, Edits::Burst | Edits::Revert | Edits::OnePublish);
        let count = if is_burst { 2 + random.below(4) } else { 1 };
        let latest = if is_burst { BURST } else { 0.0 };
        let mut edits: Vec<f64> = (0..count).map(|_| 1.0 + random.within((0.0, latest))).collect();
        edits.sort_by(f64::total_cmp);
        let mut contents: Vec<Content> = (0..=count as Content).collect();
        match kind {
            Edits::Revert => contents[count] = contents[count - 2],
            Edits::Unchanged => contents[count] = contents[count - 1],
            Edits::Single | Edits::Burst | Edits::OnePublish | Edits::Volatile => {}
        }
        let first_published = if kind == Edits::OnePublish { count - 1 } else { 0 };
        let shown = (0..replicas).map(|replica| Self::replica(lag, replica == 0, &edits, random)).collect();
        Self { edits, first_published, contents, is_volatile: kind == Edits::Volatile, shown }
    }

    fn replica(lag: Lag, is_first: bool, edits: &[f64], random: &mut Random) -> Vec<f64> {
        let fixed = random.within((0.0, 3.0));
        let phase = random.within((0.0, 10.0));
        let mut latest = 0.0_f64;
        let shows = |&edit: &f64| {
            let at = match lag {
                Lag::None => edit,
                Lag::Short => edit + random.within((0.0, 0.5)),
                Lag::Fixed => edit + fixed,
                Lag::Exponential => edit - (1.0 - random.unit()).ln(),
                Lag::OneSlow(slow) if is_first => edit + f64::from(slow),
                Lag::Uniform | Lag::OneSlow(_) => edit + random.within((0.0, 3.0)),
                Lag::Cdn => phase + ((edit - phase) / 10.0).ceil() * 10.0,
            };
            latest = latest.max(at);
            latest
        };
        edits.iter().map(shows).collect()
    }

    fn version(&self, replica: usize, at: f64) -> usize {
        self.shown[replica].iter().take_while(|&&shown| shown <= at).count()
    }

    fn last_edit(&self) -> f64 {
        self.edits[self.edits.len() - 1]
    }

    /// Returns the longest lag of the last edit.
    fn lag(&self) -> f64 {
        self.shown.iter().filter_map(|shown| shown.last().copied()).fold(0.0, f64::max) - self.last_edit()
    }
}

/// The answers that do not replace the present value.
#[derive(Clone, Copy)]
enum Guard {
    None,
    /// The content before the invalidation, where the present one differs; the last step accepts it.
    Before,
    /// As `Before`, the last step included.
    BeforeAlways,
    /// As `Before`, but the second such answer in a row is accepted.
    BeforeOnce,
    /// As `Before` after a lone invalidation, as `BeforeOnce` after others: a revert needs a second edit.
    BeforeLone,
    /// Every content held since the first invalidation of the open window; the last step accepts it.
    Held,
    /// As `Before`; and what earlier invalidations of the window found, where the present content is none of it.
    Window,
    /// A lower version. No rule without versions can know it.
    Version,
}

/// The rechecks that an answer leaves.
#[derive(Clone, Copy, PartialEq)]
enum Pace {
    Never,
    WholeList,
    /// None after the first answer that differs.
    UntilChange,
    /// The whole list again after each answer that differs.
    Restart,
    /// None after a pair: two equal answers in a row that differ from the content before the invalidation.
    UntilPair,
    /// The last step after an answer that differs from the content before a lone invalidation. An invalidation is lone
    /// if no list was unfinished when it came.
    LastAfterLoneChange,
    /// The last step after a pair.
    LastAfterPair,
    /// The last step after a pair that follows a lone invalidation.
    LastAfterLonePair,
    /// As `LastAfterLonePair`. A last step that changes between the content before the invalidation and another one,
    /// after a change, adds a step at twice its distance.
    Doubling,
}

#[derive(Clone)]
struct Rule {
    name: &'static str,
    guard: Guard,
    pace: Pace,
}

const RULES: [Rule; 16] = [
    Rule { name: "1 none", guard: Guard::None, pace: Pace::Never },
    Rule { name: "2 whole list", guard: Guard::None, pace: Pace::WholeList },
    Rule { name: "3 until a change", guard: Guard::None, pace: Pace::UntilChange },
    Rule { name: "4 restart at a change", guard: Guard::None, pace: Pace::Restart },
    Rule { name: "5 guard: before", guard: Guard::Before, pace: Pace::WholeList },
    Rule { name: "6 guard: before, last step too", guard: Guard::BeforeAlways, pace: Pace::WholeList },
    Rule { name: "7 guard: all held", guard: Guard::Held, pace: Pace::WholeList },
    Rule { name: "8a guard: before, not twice", guard: Guard::BeforeOnce, pace: Pace::WholeList },
    Rule { name: "8b guard: before and earlier", guard: Guard::Window, pace: Pace::WholeList },
    Rule { name: "8c 5, ends at a pair", guard: Guard::Before, pace: Pace::UntilPair },
    Rule { name: "8d 5, last after lone change", guard: Guard::Before, pace: Pace::LastAfterLoneChange },
    Rule { name: "8e 5, last after pair", guard: Guard::Before, pace: Pace::LastAfterPair },
    Rule { name: "8f 5, last after lone pair", guard: Guard::Before, pace: Pace::LastAfterLonePair },
    Rule { name: "8g 8a, last after lone pair", guard: Guard::BeforeOnce, pace: Pace::LastAfterLonePair },
    Rule { name: "8h 8f if lone, else 8g", guard: Guard::BeforeLone, pace: Pace::LastAfterLonePair },
    CHOSEN,
];
const CHOSEN: Rule = Rule { name: "8i 8h, doubling", guard: Guard::BeforeLone, pace: Pace::Doubling };
const LIMIT: Rule = Rule { name: "limit: versions", guard: Guard::Version, pace: Pace::WholeList };

/// The steps of a recheck list, in seconds after the anchor: the start of the fetch that answers an invalidation.
#[derive(Clone)]
struct List {
    steps: Vec<f64>,
    /// The largest part of a step by which it is late.
    jitter: f64,
}

impl List {
    fn of(steps: &[f64]) -> Self {
        Self { steps: steps.to_vec(), jitter: 0.0 }
    }

    fn polling() -> Self {
        Self { steps: (1..=300).map(|step| f64::from(step) / 10.0).collect(), jitter: 0.0 }
    }

    fn last(&self) -> f64 {
        self.steps[self.steps.len() - 1]
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.steps.iter().map(f64::to_string).collect();
        let steps = if steps.len() > 10 { "every 0.1".to_owned() } else { steps.join(", ") };
        f.pad(&if self.jitter > 0.0 { format!("{steps} + {:.0} %", self.jitter * 100.0) } else { steps })
    }
}

#[derive(Clone, Copy)]
struct Fetch {
    read_at: f64,
    done_at: f64,
    is_recheck: bool,
    is_last: bool,
}

/// The cached value, and what a rule knows of it. Only `Guard::Version` may look at versions.
struct Entry<'a> {
    rule: &'a Rule,
    list: &'a List,
    present: Content,
    version: usize,
    /// The content that the last invalidation found.
    before: Content,
    /// The contents that the invalidations of the window found.
    found: Vec<Content>,
    /// The contents held since the first invalidation of the window.
    held: Vec<Content>,
    has_changed: bool,
    is_lone: bool,
    last_answer: Option<Content>,
    anchor: f64,
    /// The times of the rechecks to come, the next one last.
    due: Vec<f64>,
    /// The times of the steps as the last invalidation planned them.
    steps: Vec<f64>,
    /// The time of the list's last step.
    ends: f64,
}

impl<'a> Entry<'a> {
    fn new(rule: &'a Rule, list: &'a List) -> Self {
        Self {
            rule,
            list,
            present: 0,
            version: 0,
            before: 0,
            found: Vec::new(),
            held: Vec::new(),
            has_changed: false,
            is_lone: true,
            last_answer: None,
            anchor: 0.0,
            due: Vec::new(),
            steps: Vec::new(),
            ends: 0.0,
        }
    }

    /// Notes an invalidation. The fetch that answers it starts now.
    fn invalidate(&mut self, now: f64, random: &mut Random) {
        self.is_lone = self.due.is_empty();
        if self.is_lone {
            self.found.clear();
            self.held.clear();
        }
        self.before = self.present;
        self.found.push(self.present);
        self.held.push(self.present);
        (self.has_changed, self.last_answer, self.anchor) = (false, None, now);
        self.plan(now, random);
        self.steps = self.due.iter().rev().copied().collect();
        if self.rule.pace == Pace::Never {
            self.due.clear();
        }
    }

    fn plan(&mut self, from: f64, random: &mut Random) {
        let late = |step: &f64| from + step * (1.0 + self.list.jitter * random.unit());
        self.due = self.list.steps.iter().map(late).collect();
        self.due.reverse();
        self.ends = self.due[0];
    }

    /// Tells whether an answer that differs from the present content replaces it.
    fn accepts(&self, answer: Content, version: usize, is_last: bool) -> bool {
        let is_before = answer == self.before;
        match self.rule.guard {
            Guard::Version => version >= self.version,
            Guard::BeforeAlways => !is_before,
            _ if is_last => true,
            Guard::None => true,
            Guard::Before => !is_before,
            Guard::BeforeOnce => !is_before || self.last_answer == Some(answer),
            Guard::BeforeLone => !is_before || !self.is_lone && self.last_answer == Some(answer),
            Guard::Held => !self.held.contains(&answer),
            Guard::Window => !is_before && (!self.found.contains(&answer) || self.found.contains(&self.present)),
        }
    }

    /// Takes the answer to a fetch that ends now; tells whether it replaces the value.
    fn answer(&mut self, (answer, version): (Content, usize), now: f64, fetch: Fetch, random: &mut Random) -> bool {
        let (old, had_changed) = (self.present, self.has_changed);
        let changes = answer != old && self.accepts(answer, version, fetch.is_last);
        if changes {
            (self.present, self.version) = (answer, version);
        } else if answer == old {
            self.version = self.version.max(version);
        }
        self.held.push(self.present);
        self.has_changed |= self.present != self.before;
        let is_pair = self.last_answer == Some(answer) && answer != self.before;
        self.last_answer = Some(answer);
        let ends = match self.rule.pace {
            Pace::Never | Pace::WholeList | Pace::Restart => false,
            Pace::UntilChange => changes,
            Pace::UntilPair | Pace::LastAfterPair => is_pair,
            Pace::LastAfterLoneChange => self.has_changed && self.is_lone,
            Pace::LastAfterLonePair | Pace::Doubling => is_pair && self.is_lone,
        };
        if ends {
            self.due.truncate(usize::from(!matches!(self.rule.pace, Pace::UntilChange | Pace::UntilPair)));
        } else if self.rule.pace == Pace::Restart && changes && fetch.is_recheck {
            self.plan(now, random);
        }
        let is_flip = changes && had_changed && (answer == self.before || old == self.before);
        if self.rule.pace == Pace::Doubling && fetch.is_last && is_flip {
            self.due.push(self.anchor + 2.0 * (fetch.read_at - self.anchor));
        }
        changes
    }
}

/// The figures of one or more runs.
#[derive(Default)]
struct Tally {
    /// For each published edit, the seconds with content other than the edit's, until the next edit or the TTL.
    stale: Vec<f32>,
    runs: u64,
    /// Runs that showed older content after newer content.
    back: u64,
    /// Runs whose lag is shorter than the last step.
    within: u64,
    /// Runs of `within` with old content 0.5 s after the first step that came after the lag of every replica.
    late: u64,
    /// Runs of `within` with old content 1 s after the last step.
    broken: u64,
    fetches: u64,
    /// Fetches whose answer differed from the present content: a 304 cannot answer them.
    bodies: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.stale.extend(&other.stale);
        self.runs += other.runs;
        self.back += other.back;
        self.within += other.within;
        self.late += other.late;
        self.broken += other.broken;
        self.fetches += other.fetches;
        self.bodies += other.bodies;
    }

    fn mean(&self) -> f64 {
        self.stale.iter().map(|&stale| f64::from(stale)).sum::<f64>() / self.stale.len() as f64
    }

    fn row(&mut self) -> String {
        let edits = self.stale.len();
        self.stale.sort_by(f32::total_cmp);
        let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        format!(
            "{:7.2} {:7.2} {:7.2} {:7.2} {:7.2} {:8.2} {:7.2}",
            self.mean(),
            self.stale[edits * 99 / 100],
            percent(self.back, self.runs),
            percent(self.late, self.within),
            percent(self.broken, self.within),
            self.fetches as f64 / edits as f64,
            self.bodies as f64 / edits as f64,
        )
    }
}

/// Simulates one run. Notes when the value changes, and compares that with the edits.
fn simulate(world: &World, rule: &Rule, list: &List, random: &mut Random, tally: &mut Tally) {
    let mut entry = Entry::new(rule, list);
    let mut changes = vec![(0.0, 0)];
    let (mut newest, mut went_back, mut answers) = (0, false, VOLATILE);
    let mut in_flight = None::<Fetch>;
    let mut publishes = world.edits[world.first_published..].iter().map(|edit| edit + HEARD_AFTER).peekable();
    let end = world.last_edit() + TTL;
    loop {
        let heard = publishes.peek().copied().unwrap_or(f64::INFINITY);
        let done = in_flight.map_or(f64::INFINITY, |fetch| fetch.done_at);
        let due = entry.due.last().copied().filter(|_| in_flight.is_none()).unwrap_or(f64::INFINITY);
        let now = heard.min(done).min(due);
        if now > end {
            break;
        }
        if now < heard
            && let Some(fetch) = in_flight.take()
        {
            let version = world.version(random.below(world.shown.len()), fetch.read_at);
            answers += 1;
            let content = if world.is_volatile { answers } else { world.contents[version] };
            tally.bodies += u64::from(content != entry.present);
            if entry.answer((content, version), now, fetch, random) {
                changes.push((now, world.contents[version]));
                went_back |= version < newest;
            }
            newest = newest.max(entry.version);
            continue;
        }
        let is_recheck = now < heard;
        if is_recheck {
            entry.due.pop();
        } else {
            // A fetch in flight may have read too early: the invalidation fences it.
            publishes.next();
            entry.invalidate(now, random);
        }
        let time = random.within(FETCH);
        let is_last = is_recheck && entry.due.is_empty();
        in_flight = Some(Fetch { read_at: now + time / 2.0, done_at: now + time, is_recheck, is_last });
        tally.fetches += 1;
    }
    tally.runs += 1;
    tally.back += u64::from(went_back);
    if world.lag() < list.last() {
        let is_old = |at: f64| {
            let held = changes.iter().rev().find(|change| change.0 <= at).map(|change| change.1);
            held != world.contents.last().copied()
        };
        let is_past_lag = |step: &&f64| **step >= world.last_edit() + world.lag();
        tally.within += 1;
        tally.late += u64::from(entry.steps.iter().find(is_past_lag).is_some_and(|step| is_old(step + 0.5)));
        tally.broken += u64::from(is_old(entry.ends + 1.0));
    }
    for (index, &from) in world.edits.iter().enumerate().skip(world.first_published) {
        let to = world.edits.get(index + 1).copied().unwrap_or(end);
        let ends = changes.iter().skip(1).map(|change| change.0).chain([f64::INFINITY]);
        let old = changes.iter().zip(ends).filter(|(change, _)| change.1 != world.contents[index + 1]);
        let stale = old.fold(0.0, |sum, (change, until)| sum + (until.min(to) - change.0.max(from)).max(0.0));
        tally.stale.push(stale as f32);
    }
}

struct Bench {
    seed: u64,
    runs: u64,
    list: List,
    is_detailed: bool,
}

impl Bench {
    fn parse() -> Result<Self, String> {
        let mut bench = Self { seed: SEED, runs: RUNS, list: List::of(&[1.0, 3.0, 10.0, 30.0]), is_detailed: false };
        let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            let fault = |_| format!("{argument} needs a whole number");
            match argument.as_str() {
                "--all" => bench.is_detailed = true,
                "--seed" => bench.seed = value()?.parse().map_err(fault)?,
                "--runs" => bench.runs = value()?.parse::<u64>().map_err(fault)?.max(1),
                "--list" => {
                    let steps: Result<Vec<f64>, _> = value()?.split(',').map(str::parse).collect();
                    bench.list.steps = steps.map_err(|_| format!("{argument} needs seconds, as in 1,5,30"))?;
                }
                _ => return Err(format!("unknown argument {argument}")),
            }
        }
        Ok(bench)
    }

    fn cell(&self, kind: Edits, (lag, replicas): (Lag, usize), rule: &Rule, list: &List) -> Tally {
        let mut tally = Tally::default();
        for run in 0..self.runs {
            let mut random = Random::of(self.seed, [kind as u64, lag.number(), replicas as u64, run]);
            let world = World::draw(kind, lag, replicas, &mut random);
            simulate(&world, rule, list, &mut random, &mut tally);
        }
        tally
    }

    fn table(&self, title: &str, kind: Edits, lags: &[Lag], replicas: &[usize], rows: &[(Rule, List)]) {
        let columns = "   mean     p99  back %  late %   old %  fetches  bodies";
        println!("\n{:56} {columns}", format!("{kind}, {title}"));
        for (rule, list) in rows {
            let mut sum = Tally::default();
            for (lag, count) in lags.iter().flat_map(|&lag| replicas.iter().map(move |&count| (lag, count))) {
                let mut tally = self.cell(kind, (lag, count), rule, list);
                sum.add(&tally);
                if self.is_detailed {
                    println!("    {lag:24} {:27} {}", format!("replicas: {count}"), tally.row());
                }
            }
            println!("{:31} {:24} {}", rule.name, list.to_string(), sum.row());
        }
    }

    fn announced(&self, rows: &[(Rule, List)]) {
        for kind in [Edits::Single, Edits::Burst, Edits::Revert] {
            self.table("1 replica", kind, &LAGS, &[1], rows);
            self.table("2, 3 and 5 replicas", kind, &LAGS, &[2, 3, 5], rows);
        }
    }

    fn rules(&self) {
        println!("\nRULES");
        let mut rows: Vec<_> = RULES.iter().map(|rule| (rule.clone(), self.list.clone())).collect();
        rows.push((LIMIT, List::polling()));
        self.announced(&rows);
        rows.pop();
        for kind in [Edits::OnePublish, Edits::Volatile] {
            self.table("1, 2, 3 and 5 replicas", kind, &LAGS, &[1, 2, 3, 5], &rows);
        }
        self.table("3 replicas, one of 60 s", Edits::Single, &[Lag::OneSlow(60)], &[3], &rows);
        for kind in [Edits::Single, Edits::Burst, Edits::Revert] {
            self.table("no lag", kind, &[Lag::None], &[1], &rows);
        }
        self.table("any lag", Edits::Unchanged, &[Lag::Uniform], &[1], &rows);
    }

    fn lists(&self) {
        println!("\nLISTS");
        let lists: [&[f64]; 11] = [
            &[1.0, 5.0, 30.0],
            &[0.5, 2.0, 8.0, 30.0],
            &[1.0, 3.0, 10.0, 30.0],
            &[2.0, 10.0],
            &[5.0],
            &[3.0, 10.0, 30.0],
            &[2.0, 8.0, 30.0],
            &[1.0, 4.0, 12.0, 30.0],
            &[1.5, 3.0, 10.0, 30.0],
            &[0.3, 1.0, 3.0, 10.0, 30.0],
            &[0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
        ];
        let mut lists: Vec<_> = lists.into_iter().map(List::of).collect();
        lists.push(List { jitter: 0.25, ..List::of(&[1.0, 5.0, 30.0]) });
        lists.push(List { jitter: 0.1, ..List::of(&[1.0, 3.0, 10.0, 30.0]) });
        let rows: Vec<_> = lists.into_iter().map(|list| (CHOSEN, list)).collect();
        self.announced(&rows);
        for lag in LAGS.into_iter().chain([Lag::Short]) {
            self.table(&format!("1, 2, 3 and 5 replicas, {lag}"), Edits::Single, &[lag], &[1, 2, 3, 5], &rows);
        }
        self.table("no lag", Edits::Single, &[Lag::None], &[1], &rows);
        self.table("any lag", Edits::Unchanged, &[Lag::Uniform], &[1], &rows);
    }
}

fn main() -> std::process::ExitCode {
    let bench = match Bench::parse() {
        Ok(bench) => bench,
        Err(fault) => {
            eprintln!("{fault}\n{USAGE}");
            return std::process::ExitCode::from(2);
        }
    };
    println!("seed {}, {} runs a cell; seconds stale and fetches are per published edit", bench.seed, bench.runs);
    println!(
        "of the runs whose lag is shorter than the last step, late: with old content 0.5 s after the first step past"
    );
    println!("the lag of every replica; old: with old content 1 s after the last step");
    bench.rules();
    bench.lists();
    std::process::ExitCode::SUCCESS
}
