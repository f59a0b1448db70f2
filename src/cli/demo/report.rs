//! The report: one row of measurements for each contender, and its conclusions as text.

use std::io::IsTerminal as _;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;

use super::stage::Stage;
use crate::cli::museum::PRICES_FROM;
use crate::cli::session::{table, wrapped};

/// The width of the horizontal table.
const WIDE: usize = 120;

/// All measurements.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The seconds that stand for an hour.
    hour_seconds: f64,
    /// The factor of upstream latencies.
    latency_factor: f64,
    /// The longest lag of the museum behind an edit.
    museum_lag_ms: f64,
    /// The seconds in which reads were counted.
    seconds: f64,
    /// Edits, each of three entries.
    edits: u64,
    /// Entries that Samovar keeps warm.
    entries: usize,
    /// The time from the start until all entries were warm.
    warmup_seconds: f64,
    /// The source of the prices.
    prices_from: &'static str,
    /// The contenders, in the order of the table.
    contenders: Vec<Row>,
}

/// The measurements of a contender.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    reads: u64,
    hits: u64,
    misses: u64,
    /// Misses that the museum did not answer.
    failed: u64,
    /// Reads while Redis was unreachable: neither hits nor misses.
    away: u64,
    hit_rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    stale_reads: u64,
    /// Stale reads because the museum had given the old content to a request after the edit.
    stale_by_lag: u64,
    stories: u64,
    stale_stories: u64,
    /// Published entries that were watched.
    published: usize,
    lag_p50_ms: f64,
    lag_p99_ms: f64,
    lag_max_ms: f64,
    /// Requests for the museum's pages since the start, 304 included.
    upstream_calls: u64,
    not_modified: u64,
    /// Answers of pages from before the last edit.
    outdated: u64,
    ai_calls: u64,
    ai_dollars: f64,
    redis_bytes: Option<u64>,
    worker_bytes: Option<u64>,
}

impl Report {
    /// Collects all measurements; `counted` is how long reads were counted.
    pub(super) async fn of(stage: &Stage, warmup: Duration, counted: Duration) -> anyhow::Result<Self> {
        let mut contenders = Vec::new();
        for (contender, freshness) in stage.contenders.iter().zip(&stage.freshness) {
            let (tally, stats) = (&contender.tally, contender.museum.stats());
            let ai_calls = stats["ai"]["calls"].as_u64().unwrap_or(0);
            let pages = stats["endpoints"].as_object().into_iter().flatten();
            contenders.push(Row {
                name: contender.name,
                reads: tally.reads.load(Relaxed),
                hits: tally.hits.load(Relaxed),
                misses: tally.misses.load(Relaxed),
                failed: tally.failed.load(Relaxed),
                away: tally.away.load(Relaxed),
                hit_rate: tally.hit_rate().unwrap_or(0.0),
                p50_ms: millis(tally.latency(0.5)),
                p99_ms: millis(tally.latency(0.99)),
                stale_reads: tally.stale.load(Relaxed),
                stale_by_lag: tally.stale_by_lag.load(Relaxed),
                stories: tally.stories.load(Relaxed),
                stale_stories: tally.stale_stories.load(Relaxed),
                published: freshness.watched(),
                lag_p50_ms: millis(freshness.lag(0.5).unwrap_or_default()),
                lag_p99_ms: millis(freshness.lag(0.99).unwrap_or_default()),
                lag_max_ms: millis(freshness.lag(1.0).unwrap_or_default()),
                upstream_calls: stats["calls"].as_u64().unwrap_or(0).saturating_sub(ai_calls),
                not_modified: pages.filter_map(|(_, page)| page["not_modified"].as_u64()).sum(),
                outdated: stats["outdated"].as_u64().unwrap_or(0),
                ai_calls,
                ai_dollars: stats["ai"]["dollars"].as_f64().unwrap_or(0.0),
                redis_bytes: contender.memory().await?,
                worker_bytes: if contenders.is_empty() { stage.fleet.memory() } else { None },
            });
        }
        Ok(Self {
            hour_seconds: stage.scale.hour.as_secs_f64(),
            latency_factor: stage.scale.latency,
            museum_lag_ms: millis(stage.scale.lag()),
            seconds: counted.as_secs_f64(),
            edits: stage.edits.load(Relaxed),
            entries: stage.catalogue.len(),
            warmup_seconds: warmup.as_secs_f64(),
            prices_from: PRICES_FROM,
            contenders,
        })
    }

    /// Prints the table and the conclusions.
    pub(super) fn print(&self, hours: f64) {
        let columns = [
            "",
            "HIT\nRATE",
            "READS\np50 / p99",
            "STALE\nREADS",
            "BY\nLAG",
            "OLD FOR\np50 / p99",
            "STALE\nSTORIES",
            "MUSEUM\nCALLS",
            "AI\nCALLS",
            "AI\nCOST",
            "REDIS\nMEMORY",
            "WORKERS\nMEMORY",
        ];
        let cells = self.contenders.iter().map(|row| {
            [
                row.name.to_owned(),
                percent(row.hit_rate),
                format!("{} / {}", time(row.p50_ms), time(row.p99_ms)),
                count(row.stale_reads),
                count(row.stale_by_lag),
                format!("{} / {}", time(row.lag_p50_ms), time(row.lag_p99_ms)),
                count(row.stale_stories),
                count(row.upstream_calls),
                count(row.ai_calls),
                format!("${:.4}", row.ai_dollars),
                row.redis_bytes.map_or_else(|| "–".to_owned(), bytes),
                row.worker_bytes.map_or_else(|| "–".to_owned(), bytes),
            ]
        });
        if std::io::stdout().is_terminal() && textwrap::termwidth() < WIDE {
            // Transposed, it fits any width.
            let cells: Vec<_> = cells.collect();
            let names: Vec<&str> = cells.iter().map(|row| row[0].as_str()).collect();
            let mut rows = table(&[&[""], names.as_slice()].concat());
            for (column, name) in columns.iter().enumerate().skip(1) {
                let figures = cells.iter().map(|row| row[column].clone());
                rows.add_row(std::iter::once(name.replace('\n', " ")).chain(figures));
            }
            println!("{rows}\n");
        } else {
            let mut rows = table(&columns);
            for row in cells {
                rows.add_row(row);
            }
            println!("{rows}\n");
        }
        let reads = self.contenders.first().map_or(0, |row| row.reads);
        let away = self.contenders.iter().map(|row| row.away).max().unwrap_or(0);
        let facts = format!(
            "{} reads each in {:.0} s ({:.1} real hours), of which {} came while Redis was down and are left out; {} \
             edits, each published as three entries. Calls and costs are from the start on, warmup included ({hours:.1} \
             real hours); prices: {}.\n\
             Stale: read after the publish, and older. By lag: of these, the reads of content that the museum had still \
             given to a request after the edit, because it shows an edit up to {} later. Old for: from the publish until \
             the old value was given for the last time. Stories are made from edited artworks, but edits do not publish \
             them; biographies are of no artwork.",
            count(reads),
            self.seconds,
            self.seconds / self.hour_seconds,
            count(away),
            self.edits,
            self.prices_from,
            time(self.museum_lag_ms),
        );
        for paragraph in facts.lines() {
            println!("{}", wrapped(paragraph, ""));
        }
        println!();
        for line in self.says() {
            println!("{}", wrapped(&format!("· {line}"), "  "));
        }
    }

    /// Returns the conclusions from the measurements.
    fn says(&self) -> Vec<String> {
        let [ours, hundred, aside] = self.contenders.as_slice() else { return Vec::new() };
        let missed = |row: &Row| count(row.misses + row.failed);
        let mut lines = vec![format!(
            "Readers waited for the museum {} times with Samovar, {} times with the hundred lines, {} times with cache-aside.",
            missed(ours),
            missed(hundred),
            missed(aside)
        )];
        lines.push(format!(
            "After a publish the old value was given for {} at worst by Samovar, {} by the hundred lines, {} by cache-aside.",
            time(ours.lag_max_ms),
            time(hundred.lag_max_ms),
            time(aside.lag_max_ms),
        ));
        lines.push(format!(
            "After an edit the museum gave old content to {} requests of Samovar, {} of the hundred lines, {} of \
             cache-aside. Because of it {}, {} and {} reads were stale: Samovar fetches again (`recheck`), the others keep \
             it until they next fetch the page.",
            count(ours.outdated),
            count(hundred.outdated),
            count(aside.outdated),
            count(ours.stale_by_lag),
            count(hundred.stale_by_lag),
            count(aside.stale_by_lag),
        ));
        if hundred.lag_p50_ms < ours.lag_p50_ms {
            lines.push(format!(
                "Usually the hundred lines remove it sooner ({} against {} at p50): they delete it and let the next reader wait. \
                 Samovar serves it until the new one is there, unless told to `evict`.",
                time(hundred.lag_p50_ms),
                time(ours.lag_p50_ms)
            ));
        }
        lines.push(format!(
            "Of {} stories read, {} showed an artwork before its edit with Samovar, {} with the hundred lines, {} with \
             cache-aside.",
            count(ours.stories),
            count(ours.stale_stories),
            count(hundred.stale_stories),
            count(aside.stale_stories)
        ));
        lines.push(compare("AI calls", ours.ai_calls, hundred.ai_calls, aside.ai_calls));
        lines.push(compare(
            "calls to the museum's pages",
            ours.upstream_calls,
            hundred.upstream_calls,
            aside.upstream_calls,
        ));
        if ours.not_modified > 0
            && let Some(line) = lines.last_mut()
        {
            line.push_str(&format!(" Of Samovar's, {} were answered 304, unchanged.", count(ours.not_modified)));
        }
        let more =
            |other: &Row| Some(ours.redis_bytes? as f64 / other.redis_bytes? as f64).filter(|ratio| *ratio > 1.05);
        if let (Some(ratio), Some(workers)) = (more(hundred), ours.worker_bytes) {
            lines.push(format!(
                "It costs {ratio:.1} times the memory in Redis (mostly metadata of each entry), and {} for the workers.",
                bytes(workers)
            ));
        }
        lines
    }
}

fn compare(what: &str, ours: u64, hundred: u64, aside: u64) -> String {
    let against = |other: u64, name: &str| match ours.cmp(&other) {
        std::cmp::Ordering::Less => format!("{} fewer than {name}", count(other - ours)),
        std::cmp::Ordering::Equal => format!("as many as {name}"),
        std::cmp::Ordering::Greater => format!("{} more than {name}", count(ours - other)),
    };
    format!(
        "Samovar made {} {what}: {}, {}.",
        count(ours),
        against(hundred, "the hundred lines"),
        against(aside, "cache-aside")
    )
}

/// Returns a number with separators: 1,234,567.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a percentage, never rounded up to 100.
pub(super) fn percent(share: f64) -> String {
    if share >= 1.0 { "100 %".to_owned() } else { format!("{:.2} %", (share * 10_000.0).floor() / 100.0) }
}

/// Returns milliseconds as text.
pub(super) fn time(millis: f64) -> String {
    match millis {
        ms if ms < 0.05 => "0 ms".to_owned(),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1_000.0),
    }
}

fn bytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_miss_is_not_a_hundred_per_cent() {
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.999_99), "99.99 %");
    }

    #[test]
    fn thousands_are_set_off() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
