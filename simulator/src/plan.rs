//! A seed's plan: the jobs, the size of the fleet, and which faults come how often.

use std::time::Duration;

use crate::random::Random;

/// An interval between warmups of which only the first one comes within a run.
const RARELY: &str = "3h";

/// A plan. Rates of faults are in thousandths.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Workers that are to live.
    pub(crate) workers: usize,
    /// The names that the jobs list.
    pub(crate) listed: Vec<String>,
    /// Names that the feed may name; none if the jobs have no feed.
    pub(crate) fed: Vec<String>,
    /// Names that only demands make due.
    pub(crate) unlisted: Vec<String>,
    /// The time for which faults and edits go on.
    pub(crate) active: Duration,
    /// The claim time.
    pub(crate) claim: Duration,
    pub(crate) ttl: &'static str,
    pub(crate) every: Option<&'static str>,
    pub(crate) recheck: &'static str,
    pub(crate) stale_if_error: bool,
    pub(crate) is_tagged: bool,
    pub(crate) rate: Option<&'static str>,
    pub(crate) concurrency: Option<u8>,
    /// There are pages, which are composed of the artworks.
    pub(crate) pages: bool,
    /// There are stories, which a model writes about the artworks.
    pub(crate) stories: bool,
    /// The token budget of the model.
    pub(crate) tokens: Option<Tokens>,
    /// Artworks tell their versions.
    pub(crate) versions: bool,
    /// Many artworks that are gone at once are held back.
    pub(crate) guard: bool,
    /// The usual time of a command's way, there and back (ms).
    pub(crate) latency: u64,
    /// Commands that take up to 400 ms.
    pub(crate) slow: u64,
    /// Commands that take seconds.
    pub(crate) stalled: u64,
    /// Commands with which the socket breaks, before or after they are carried out.
    pub(crate) cut: u64,
    /// Commands after which a socket is silent, until its client gives it up.
    pub(crate) mute: u64,
    /// The mean time between two faults of a whole part: a worker, Redis, the upstream, the clock.
    pub(crate) disaster: Option<Duration>,
    /// The kinds of those faults.
    pub(crate) disasters: Vec<Disaster>,
    /// The upstream's usual time for an answer (ms).
    pub(crate) answer: u64,
    /// Requests that fail: an error, nonsense, a broken body, no answer.
    pub(crate) failing: u64,
    /// The longest lag of an answer's content (ms).
    pub(crate) lag: u64,
    /// The mean time between two edits.
    pub(crate) edit: Duration,
    /// Edits that evict.
    pub(crate) evict: u64,
    /// Edits that are told over the channel, not through the inbox.
    pub(crate) channel: u64,
    /// Edits that remove an item from the upstream, or bring it back.
    pub(crate) gone: u64,
    /// Artworks are asked for together.
    pub(crate) bulk: Option<Bulk>,
}

/// Requests for many artworks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bulk {
    /// The most artworks in one.
    pub(crate) size: usize,
    /// An answer has its items by name, and not in a list.
    pub(crate) is_by_name: bool,
    /// Answers that leave out artworks which the upstream has.
    pub(crate) short: u64,
    /// Requests for several that are refused.
    pub(crate) refused: u64,
}

/// A fault of a whole part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disaster {
    /// A worker dies at once.
    Kill,
    /// A worker is told to stop.
    Stop,
    /// All sockets of a worker break.
    Cut,
    /// Redis restarts with all its data.
    Restart,
    /// Redis restarts without data.
    Lose,
    /// Redis restarts with the data of an earlier time.
    Rollback,
    /// Redis is flushed.
    Flush,
    /// The upstream fails for everything for a while.
    Outage,
    /// Redis's clock is set.
    Clock,
    /// The upstream has no artwork for a while.
    Vanish,
    /// A job file changes, and one worker after the other reads it.
    Deploy,
    /// A job is paused for a while.
    Pause,
}

/// A budget of tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens {
    /// As the file of upstreams has it.
    pub(crate) text: &'static str,
    /// The tokens, if their window does not end within a run.
    pub(crate) most: Option<u64>,
}

impl Tokens {
    const AMPLE: Self = Self { text: "1000000/day", most: None };
    const BY_AND_BY: Self = Self { text: "400/20s", most: None };
    const FEW: Self = Self { text: "400/day", most: Some(400) };
    const SOME: Self = Self { text: "2000/day", most: Some(2_000) };
}

impl Disaster {
    /// Returns the kinds of a world, each as often as it comes.
    fn mix(random: &mut Random) -> Vec<Self> {
        use Disaster::{Clock, Cut, Deploy, Flush, Kill, Lose, Outage, Pause, Restart, Rollback, Stop, Vanish};
        match random.below(11) {
            0 => vec![Kill],
            1 => vec![Kill, Kill, Stop, Cut],
            2 => vec![Cut, Restart],
            3 => vec![Kill, Restart, Flush, Lose],
            4 => vec![Kill, Cut, Outage],
            5 => vec![Kill, Stop, Cut, Restart, Rollback, Outage],
            6 => vec![Kill, Stop, Cut, Restart, Lose, Flush, Outage, Clock],
            7 => vec![Deploy],
            8 => vec![Deploy, Deploy, Kill, Stop, Cut, Restart],
            9 => vec![Vanish, Pause, Kill],
            _ => vec![Kill, Stop, Cut, Restart, Lose, Flush, Outage, Clock, Vanish, Deploy, Deploy, Pause],
        }
    }
}

impl Plan {
    /// Returns a seed's plan.
    pub(crate) fn of(random: &mut Random) -> Self {
        let names = |prefix: &str, count: u64| (1..=count).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>();
        let is_calm = random.chance(150);
        let rate = |random: &mut Random, most: u64| if is_calm { 0 } else { random.pick(&[0, 0, 1, most / 4, most]) };
        let (slow, stalled) = (rate(random, 100), rate(random, 4));
        let (cut, mute) = (rate(random, 8), rate(random, 3));
        let failing = rate(random, 300);
        let disasters = Disaster::mix(random);
        let recheck = random.pick(&["[]", "[\"1s\", \"3s\"]", "[\"1s\", \"3s\", \"10s\", \"30s\"]"]);
        // Rechecks are for upstreams that lag.
        let lag = if recheck == "[]" { 0 } else { random.pick(&[0, 0, 800, 2_500]) };
        let mut plan = Self {
            workers: random.pick(&[1, 2, 2, 3]),
            listed: names("e", random.within(1..=6)),
            fed: if random.chance(300) { names("f", random.within(1..=4)) } else { Vec::new() },
            unlisted: names("u", random.within(0..=2)),
            active: Duration::from_secs(random.within(20..=150)),
            claim: Duration::from_secs(random.pick(&[10, 30])),
            ttl: random.pick(&["20s", "1m", "10m", "1h"]),
            every: random.pick(&[None, Some("30s"), Some("1m"), Some(RARELY)]),
            recheck,
            stale_if_error: random.chance(300),
            is_tagged: random.chance(500),
            rate: random.pick(&[None, None, Some("5/s"), Some("20/s")]),
            concurrency: random.pick(&[None, None, Some(1), Some(3)]),
            pages: random.chance(400),
            stories: random.chance(350),
            tokens: random.pick(&[
                None,
                Some(Tokens::AMPLE),
                Some(Tokens::BY_AND_BY),
                Some(Tokens::FEW),
                Some(Tokens::SOME),
            ]),
            versions: random.chance(250),
            guard: random.chance(250),
            latency: random.pick(&[0, 1, 2, 10]),
            slow,
            stalled,
            cut,
            mute,
            disaster: (!is_calm && random.chance(850)).then(|| Duration::from_secs(random.within(2..=40))),
            disasters,
            answer: random.pick(&[1, 10, 100, 900]),
            failing,
            lag,
            edit: Duration::from_millis(random.pick(&[200, 1_000, 4_000, 15_000])),
            evict: random.pick(&[0, 300, 1_000]),
            channel: random.pick(&[0, 0, 500, 1_000]),
            gone: random.pick(&[0, 0, 100]),
            bulk: None,
        };
        if is_calm && random.chance(300) {
            // Nothing but a demand or a message brings an entry back, and entries wait for their upstream.
            (plan.every, plan.channel, plan.pages, plan.stories) = (None, 0, false, false);
            (plan.evict, plan.rate) = (plan.evict.max(300), Some("5/s"));
        }
        if plan.every == Some(RARELY) {
            // Nothing is removed that no warmup would bring back, and nothing new is named.
            plan.fed.clear();
            (plan.evict, plan.gone) = (0, 0);
            plan.disasters.retain(|kind| *kind != Disaster::Vanish);
        }
        if plan.every.is_none() {
            plan.fed.clear();
        }
        if plan.guard {
            // A removal that is held back would last for longer than a run.
            plan.gone = 0;
        }
        plan
    }

    /// Returns the plan with requests for many artworks, if the seed has them. They come from a sequence of their own,
    /// so that the plans of other seeds are as before.
    pub(crate) fn with_bulk(self, random: &mut Random) -> Self {
        let bulk = random.chance(300).then(|| Bulk {
            size: random.pick(&[2, 3, 50]),
            is_by_name: random.chance(300),
            short: random.pick(&[0, 0, 300]),
            refused: random.pick(&[0, 0, 200]),
        });
        Self { bulk, ..self }
    }

    /// Returns all names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.listed.iter().chain(&self.unlisted).chain(&self.fed)
    }

    /// Returns true if entries that are kept warm are there in the end.
    pub(crate) fn warms_up(&self) -> bool {
        self.every.is_some()
    }

    /// Returns true if some messages are told over the channel, where they may be lost.
    pub(crate) fn tells_bare(&self) -> bool {
        self.channel > 0
    }

    /// Returns true if no fault of this plan makes others take a worker that lives for dead.
    pub(crate) fn all_beat(&self) -> bool {
        use Disaster::{Deploy, Kill, Outage, Pause, Stop, Vanish};
        let is_harmless = |kind: &Disaster| matches!(kind, Kill | Stop | Outage | Vanish | Pause | Deploy);
        self.stalled == 0 && self.mute == 0 && self.disasters.iter().all(is_harmless)
    }

    /// Returns true if no command takes long, and all are answered while their connections last.
    pub(crate) fn is_quick(&self) -> bool {
        self.slow == 0 && self.stalled == 0 && self.mute == 0
    }

    /// Returns true if an entry that was evicted is fetched only for a service or a message.
    pub(crate) fn fetches_on_demand(&self) -> bool {
        let is_calm = self.is_quick() && self.cut == 0 && self.disaster.is_none() && !self.tells_bare();
        is_calm && self.every.is_none() && !self.pages && !self.stories
    }
}
