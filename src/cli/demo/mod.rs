//! `samovar demo`: a one-minute run of Samovar, measured against two alternatives.
//!
//! Each contender has its own Redis and museum. All get the same reads and edits at the same times, a worker is killed,
//! and every Redis is killed, and restarted or replaced by its replica. Every number on the screen is measured in this
//! run. All started processes end with the demo, however it ends.

mod catalogue;
mod contender;
mod editors;
mod fleet;
mod hundred_lines;
pub(super) mod minder;
mod readers;
mod report;
mod scale;
mod screen;
mod server;
mod site;
mod stage;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::time::Instant;

use self::report::{Report, count, percent, time};
use self::scale::Scale;
use self::screen::Screen;
use self::site::Topology;
use self::stage::{EDITS, READS, Stage};
use super::session::wrapped;
use super::{exit, session};

use crate::entry::duration;

/// The scale of time: see [`Scale`].
const SCALE: Scale = Scale { hour: Duration::from_secs(12), latency: 0.04 };
/// The time that the demo waits for the warmup before it continues.
const WARMUP: Duration = Duration::from_secs(30);
/// The refresh interval of the screen.
const POLL: Duration = Duration::from_millis(250);
/// The shares of the whole time at which a worker is killed, another is started, and Redis is restarted.
const ACTS: [f64; 3] = [0.35, 0.45, 0.65];

/// Arguments of `samovar demo`.
#[derive(Args)]
pub(super) struct DemoArgs {
    /// Keep everything running afterwards, until Ctrl-C
    #[arg(long)]
    stay: bool,
    /// The time in which reads are counted after the warmup
    #[arg(long, value_name = "N", default_value_t = 36, value_parser = clap::value_parser!(u64).range(3..=3600))]
    seconds: u64,
    /// The seed of reads and edits; the same seed gives the same reads and edits
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The Redis of each contender
    #[arg(long, value_enum, default_value_t = Topology::Single)]
    topology: Topology,
    /// Print only the result, as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &DemoArgs) -> u8 {
    let Some(program) = server::program() else {
        eprintln!("samovar: found neither redis-server nor valkey-server on the PATH; `make setup` installs one");
        return exit::UNAVAILABLE;
    };
    tokio::select! {
        // First, so that Ctrl-C ends `--stay` with success.
        biased;
        ended = play(args, program) => match ended {
            Ok(()) => exit::OK,
            Err(e) => {
                eprintln!("samovar: {e:#}");
                exit::FAILED
            }
        },
        () = super::asked_to_stop() => {
            eprintln!("\nsamovar: stopped; all processes have ended");
            exit::FAILED
        }
    }
}

async fn play(args: &DemoArgs, program: &'static str) -> anyhow::Result<()> {
    let mut screen = Screen::new(4, args.json);
    if !args.json {
        introduce();
    }
    let mut stage = Stage::set(program, args.topology, SCALE, args.seed).await?;
    let warmup = warm_up(&mut stage, &mut screen).await?;
    let from = Instant::now();
    stage.count();
    screen.phase("Reading");
    let whole = Duration::from_secs(args.seconds);
    let act = |share: f64| from + whole.mul_f64(share);

    watch(&mut stage, &mut screen, from, whole, act(ACTS[0])).await?;
    kill_a_worker(&mut stage, &mut screen, from, whole, act(ACTS[1])).await?;
    watch(&mut stage, &mut screen, from, whole, act(ACTS[2])).await?;
    restart_redis(&mut stage, &mut screen).await?;
    watch(&mut stage, &mut screen, from, whole, act(1.0)).await?;

    let counted = stage.close().await?;
    let report = Report::of(&stage, warmup, counted).await?;
    screen.end();
    if args.json {
        session::print_json(&report);
    } else {
        report.print(SCALE.hours(stage.begin.elapsed()));
        invite(&stage, args.stay);
    }
    if args.stay {
        super::asked_to_stop().await;
    }
    Ok(())
}

fn introduce() {
    let [pages, model] = SCALE.latencies();
    let hour = SCALE.hour.as_secs_f64();
    let paragraphs = format!(
        "Samovar against two alternatives, each with its own Redis and museum:\n\
         \x20 hundred lines   a cron job that prefetches what is popular each half TTL, and DEL when an edit is published\n\
         \x20 cache-aside     GET; on a miss ask the museum and SET with a TTL; edits are not published to it\n\
         All three serve the same {READS:.0} reads a second (Zipf) and get the same {EDITS} edits a second. On a miss the API \
         fetches in the same way in all three, Samovar's too.\n\n\
         An hour takes {hour:.0} s here: TTLs, warmups and limits are those of jobs/*.toml, {faster:.0} times faster. \
         Upstreams are not: pages take {} to {} ms, AI answers {} to {} ms, {slower:.0} times faster than in reality, so that \
         relative to TTLs they are slow. Reads stand for {visits:.0} a minute: on a busier site, fewer would miss in all \
         three. The shipped stories are two; here the {stories} most popular artworks have one.\n\n\
         The museum lags, as a read replica does: its pages show an edit 0 to {} ms after it was made (0 to {} s in \
         reality), the same in all three. A fetch right after a publish may thus get old content. Samovar fetches the page \
         again a few times, further and further apart (`recheck`).\n",
        pages.0.as_millis(),
        pages.1.as_millis(),
        model.0.as_millis(),
        model.1.as_millis(),
        SCALE.lag().as_millis(),
        scale::LAG.as_secs(),
        faster = 3_600.0 / hour,
        slower = 1.0 / SCALE.latency,
        visits = READS * hour / 60.0,
        stories = scale::STORIES,
    );
    for paragraph in paragraphs.lines() {
        println!("{}", wrapped(paragraph, if paragraph.starts_with(' ') { "                  " } else { "" }));
    }
}

/// Waits until all entries are warm; returns the duration.
async fn warm_up(stage: &mut Stage, screen: &mut Screen) -> anyhow::Result<Duration> {
    screen.phase("Warmup");
    let whole = stage.catalogue.len();
    screen.say(&format!("2 workers started on an empty Redis: {whole} entries to warm, while readers already come"));
    let mut warmed = None;
    loop {
        stage.check()?;
        let warm = stage.warm().await?;
        let done = stage.begin.elapsed();
        if warm >= whole && warmed.is_none() {
            warmed = Some(done);
            let rate = whole as f64 / done.as_secs_f64();
            screen.say(&format!("all {whole} entries are warm after {:.1}s ({rate:.0} a second)", done.as_secs_f64()));
        }
        match warmed {
            Some(warmed) if stage.prefetched() => return Ok(warmed),
            _ if done > WARMUP => {
                screen.say(&format!("{warm} of {whole} entries are warm after {:.0}s; continuing", done.as_secs_f64()));
                return Ok(done);
            }
            _ => {}
        }
        screen.show(warm as u64, whole as u64, &format!("{warm} of {whole} entries warm"), &[]);
        // On a Cluster, each entry is asked for by itself.
        tokio::time::sleep(if stage.topology == Topology::Cluster { 4 * POLL } else { POLL / 2 }).await;
    }
}

/// Shows the progress until then.
async fn watch(
    stage: &mut Stage,
    screen: &mut Screen,
    from: Instant,
    whole: Duration,
    until: Instant,
) -> anyhow::Result<()> {
    while Instant::now() < until {
        stage.check()?;
        let mut lines: Vec<String> = Vec::new();
        for (contender, freshness) in stage.contenders.iter().zip(&stage.freshness) {
            let (tally, lag) = (&contender.tally, freshness.lag(0.5));
            lines.push(format!(
                "  {:<14} hits {:>9}   p99 {:>7}   stale reads {:>5}, {:>3} by lag   old for {:>7} (p50), {} waiting",
                contender.name,
                tally.hit_rate().map_or_else(|| "–".to_owned(), percent),
                time(tally.latency(0.99).as_secs_f64() * 1e3),
                count(tally.stale.load(Relaxed)),
                count(tally.stale_by_lag.load(Relaxed)),
                lag.map_or_else(|| "–".to_owned(), |lag| time(lag.as_secs_f64() * 1e3)),
                freshness.waiting.load(Relaxed),
            ));
        }
        let reads = stage.contenders.first().map_or(0, |contender| contender.tally.reads.load(Relaxed));
        let refreshed = stage.refreshed().await.map_or_else(|_| "–".to_owned(), count);
        let word = format!(
            "{} reads each, {} edits; Samovar has refreshed {refreshed}",
            count(reads),
            stage.edits.load(Relaxed)
        );
        let done = duration::millis(from.elapsed()).unsigned_abs();
        screen.show(done, duration::millis(whole).unsigned_abs(), &word, &lines);
        tokio::time::sleep_until(until.min(Instant::now() + POLL)).await;
    }
    Ok(())
}

async fn kill_a_worker(
    stage: &mut Stage,
    screen: &mut Screen,
    from: Instant,
    whole: Duration,
    until: Instant,
) -> anyhow::Result<()> {
    let before = stage.refreshed().await?;
    let misses = |stage: &Stage| stage.contenders[0].tally.misses.load(Relaxed);
    let missed = misses(stage);
    stage.fleet.kill9(1);
    let killed = Instant::now();
    screen.say("worker 1 killed with SIGKILL: its entries become due again, worker 2 continues alone");
    watch(stage, screen, from, whole, until).await?;
    screen.say(&format!(
        "in {:.1}s alone, worker 2 refreshed {} entries; readers missed {} times; worker 3 started",
        killed.elapsed().as_secs_f64(),
        count(stage.refreshed().await?.saturating_sub(before)),
        misses(stage) - missed,
    ));
    stage.fleet.start(3)
}

async fn restart_redis(stage: &mut Stage, screen: &mut Screen) -> anyhow::Result<()> {
    screen.say(match stage.topology {
        Topology::Single => "all three Redis servers killed with SIGKILL, and restarted from their append-only files",
        Topology::Sentinel => "all three masters killed with SIGKILL; their Sentinels promote the replicas",
        Topology::Cluster => "a master of each Cluster killed with SIGKILL; its replica takes its place",
    });
    let killed = Instant::now();
    let before = stage.refreshed().await?;
    let back = stage.restart().await?;
    let longest = back.iter().max().copied().unwrap_or_default();
    screen.say(&format!("they answer again after {}", time(longest.as_secs_f64() * 1e3)));
    let until = killed + Duration::from_secs(10);
    while Instant::now() < until {
        stage.check()?;
        if stage.refreshed().await.is_ok_and(|now| now > before) {
            let warm = stage.warm().await?;
            screen.say(&format!(
                "the workers have reconnected and refresh again, {} after the kill; {warm} of {} entries are warm",
                time(killed.elapsed().as_secs_f64() * 1e3),
                stage.catalogue.len(),
            ));
            return Ok(());
        }
        tokio::time::sleep(POLL / 25).await;
    }
    screen.say("nothing has been refreshed for 10s");
    Ok(())
}

/// Prints how to try it.
fn invite(stage: &Stage, stay: bool) {
    let Some((url, redis_cli)) = stage.redis() else { return };
    if !stay {
        let how = "Try it yourself: `samovar demo --stay` (or `make demo ARGS=--stay`) keeps everything running and shows how.";
        println!("\n{}", wrapped(how, ""));
        return;
    }
    let museum = stage.contenders.first().map(|contender| contender.museum.url()).unwrap_or_default();
    let program =
        std::env::current_exe().context("no name").map_or_else(|_| "samovar".into(), |exe| exe.display().to_string());
    let env: Vec<String> = scale::environment(&museum).map(|(name, value)| format!("{name}={value}")).into();
    let console = stage.console().unwrap_or_else(|| "no worker serves it".to_owned());
    println!(
        "\nIt keeps running until Ctrl-C. The console, in a browser:\n\n\
         \x20 {console}\n\n\
         In another terminal:\n\n\
         \x20 redis-cli {redis_cli} GET 'artwork_info:Mona Lisa'\n\
         \x20 curl -X POST {museum}/artworks/Mona%20Lisa      # edit it\n\
         \x20 redis-cli {redis_cli} PUBLISH samovar:invalidate 'artwork_info:Mona Lisa'   # and publish the edit\n\
         \x20 curl {museum}/stats\n\n\
         \x20 export REDIS_URL={url} SAMOVAR_JOBS={jobs} {env}\n\
         \x20 {program} jobs\n\
         \x20 {program} get 'ai_content:story:Mona Lisa'\n\
         \x20 {program} invalidate --evict 'artwork_image:Mona Lisa'",
        jobs = stage.jobs().display(),
        env = env.join(" "),
    );
}
