//! A seed's plan: the job's file, the size of the fleet, and which faults come how often.

use std::time::Duration;

use crate::random::Random;

/// A plan. Rates of faults are in thousandths.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Workers that are to live.
    pub(crate) workers: usize,
    /// The names that the job lists.
    pub(crate) listed: Vec<String>,
    /// Names that only demands make due.
    pub(crate) unlisted: Vec<String>,
    /// The time for which faults and edits go on.
    pub(crate) active: Duration,
    /// The claim time.
    pub(crate) claim: Duration,
    ttl: &'static str,
    every: Option<&'static str>,
    recheck: &'static str,
    stale_if_error: bool,
    is_tagged: bool,
    rate: Option<&'static str>,
    concurrency: Option<u8>,
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
        use Disaster::{Clock, Cut, Flush, Kill, Lose, Outage, Restart, Rollback, Stop};
        let disasters = match random.below(7) {
            0 => vec![Kill],
            1 => vec![Kill, Kill, Stop, Cut],
            2 => vec![Cut, Restart],
            3 => vec![Kill, Restart, Flush, Lose],
            4 => vec![Kill, Cut, Outage],
            5 => vec![Kill, Stop, Cut, Restart, Rollback, Outage],
            _ => vec![Kill, Stop, Cut, Restart, Lose, Flush, Outage, Clock],
        };
        let recheck = random.pick(&["[]", "[\"1s\", \"3s\"]", "[\"1s\", \"3s\", \"10s\", \"30s\"]"]);
        // Rechecks are for upstreams that lag.
        let lag = if recheck == "[]" { 0 } else { random.pick(&[0, 0, 800, 2_500]) };
        Self {
            workers: random.pick(&[1, 2, 2, 3]),
            listed: names("e", random.within(1..=6)),
            unlisted: names("u", random.within(0..=2)),
            active: Duration::from_secs(random.within(20..=150)),
            claim: Duration::from_secs(random.pick(&[10, 30])),
            ttl: random.pick(&["20s", "1m", "10m", "1h"]),
            every: random.pick(&[None, Some("30s"), Some("1m")]),
            recheck,
            stale_if_error: random.chance(300),
            is_tagged: random.chance(500),
            rate: random.pick(&[None, None, Some("5/s"), Some("20/s")]),
            concurrency: random.pick(&[None, None, Some(1), Some(3)]),
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
        }
    }

    /// Returns the job files: their names and texts.
    pub(crate) fn files(&self) -> Vec<(String, String)> {
        let mut upstreams = "[museum]\nurl = \"http://museum\"\ntimeout = \"2s\"\n".to_owned();
        if let Some(rate) = self.rate {
            upstreams += &format!("rate = \"{rate}\"\n");
        }
        if let Some(concurrency) = self.concurrency {
            upstreams += &format!("concurrency = {concurrency}\n");
        }
        let tags = if self.is_tagged { "tags = [\"all\"]\n" } else { "" };
        let mut job = format!(
            "key = \"art:{{name}}\"\nttl = \"{}\"\n{tags}\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
             path = \"/art/{{{{ name }}}}\"\n\n[entries]\nlist = {:?}\n\n[warm]\nrecheck = {}\ngone_guard = \"off\"\n\
             attempts = 1000\n",
            self.ttl, self.listed, self.recheck
        );
        if let Some(every) = self.every {
            job += &format!("every = \"{every}\"\n");
        }
        if self.stale_if_error {
            job += "stale_if_error = \"10m\"\n";
        }
        vec![("upstreams.toml".to_owned(), upstreams), ("art.toml".to_owned(), job)]
    }

    /// Returns the keys of listed and unlisted names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.listed.iter().chain(&self.unlisted)
    }

    /// Returns true if a warmup brings back what was evicted.
    pub(crate) fn warms_up(&self) -> bool {
        self.every.is_some()
    }

    /// Returns true if some messages are told over the channel, where they may be lost.
    pub(crate) fn tells_bare(&self) -> bool {
        self.channel > 0
    }

    /// Returns true if no fault of this plan makes others take a worker that lives for dead.
    pub(crate) fn all_beat(&self) -> bool {
        use Disaster::{Kill, Outage, Stop};
        self.stalled == 0 && self.mute == 0 && self.disasters.iter().all(|kind| matches!(kind, Kill | Stop | Outage))
    }

    /// Returns true if values have the tag `all`.
    pub(crate) fn is_tagged(&self) -> bool {
        self.is_tagged
    }
}
