//! The fleet: workers that start, stop and die, and the faults of whole parts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use samovar::config::{Listen, Settings};
use samovar::job::{Jobs, Reload};
use samovar::redis::RedisUrl;
use samovar::telemetry::{LogFilter, LogFormat};
use samovar::worker;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::check;
use crate::files::Job;
use crate::machine;
use crate::network::Network;
use crate::plan::Disaster;
use crate::world::Shared;

/// The time within which all must be fresh once all is quiet.
const SETTLES: Duration = Duration::from_secs(1_200);
/// The time for which the costs of a quiet fleet are counted.
const COUNTED: Duration = Duration::from_secs(30);
/// The TTL of a job that sets none.
const TTL: Duration = Duration::from_secs(3_600);

/// A worker that runs.
struct Worker {
    ended: JoinHandle<Result<(), String>>,
    stop: CancellationToken,
    reload: Arc<Reload>,
}

/// The workers, and how many there have been.
pub(crate) struct Fleet<'a> {
    shared: Shared,
    network: &'a RefCell<Network>,
    workers: BTreeMap<String, Worker>,
    count: usize,
}

impl<'a> Fleet<'a> {
    /// Returns a fleet without workers.
    pub(crate) fn new(shared: Shared, network: &'a RefCell<Network>) -> Self {
        Self { shared, network, workers: BTreeMap::new(), count: 0 }
    }

    /// Runs until all is fresh, after faults and edits.
    pub(crate) async fn run(mut self) {
        let (active, wanted) = {
            let world = self.shared.lock();
            (world.plan.active, world.plan.workers)
        };
        while machine::elapsed() < active {
            self.look().await;
            if self.workers.len() < wanted {
                self.start();
            }
            let pause = {
                let mut world = self.shared.lock();
                let mean = world.plan.disaster.unwrap_or(active);
                world.around(mean).min(active)
            };
            // Workers that are missing come soon; the next fault comes in its time.
            let until = machine::elapsed() + pause;
            while machine::elapsed() < until.min(active) {
                sleep(until.saturating_sub(machine::elapsed()).min(Duration::from_secs(2))).await;
                self.look().await;
                if self.workers.len() < wanted && self.shared.lock().random.chance(500) {
                    self.start();
                }
            }
            self.strike();
            if self.shared.lock().random.chance(500) {
                self.network.borrow_mut().redis.save();
            }
        }
        self.settle(wanted).await;
    }

    /// Waits until all is fresh, then counts what that costs.
    async fn settle(&mut self, wanted: usize) {
        self.resume();
        let deploys = self.shared.lock().plan.disasters.contains(&Disaster::Deploy);
        for worker in self.workers.values().filter(|_| deploys) {
            worker.reload.ask();
        }
        {
            let mut world = self.shared.lock();
            world.is_quiet = true;
            world.tell("all is quiet from now on");
        }
        let until = machine::elapsed() + SETTLES;
        let mut reason = None;
        while machine::elapsed() < until {
            sleep(Duration::from_secs(1)).await;
            self.look().await;
            while self.workers.len() < wanted {
                self.start();
            }
            let network = self.network.borrow();
            let mut world = self.shared.lock();
            reason = if network.redis.is_up { check::settled(&world, &network.redis).err() } else { None };
            if network.redis.is_up && reason.is_none() {
                world.tell("all is fresh");
                break;
            }
        }
        self.check(reason).await;
    }

    /// Checks what is so in the end: all is fresh, unless there is a reason, and that costs little.
    async fn check(&mut self, reason: Option<(String, String)>) {
        if let Some((told, subject)) = reason {
            return self.shared.lock().violated(check::FRESH, told, &subject);
        }
        let unknown = self.network.borrow().redis.unknown().join(", ");
        if !unknown.is_empty() {
            return self.shared.lock().violated(check::KNOWN, unknown, "unknown");
        }
        let (before, calls) = {
            let world = self.shared.lock();
            (world.requests.len(), world.calls.len())
        };
        sleep(COUNTED).await;
        let mut world = self.shared.lock();
        let paid = world.calls.len() - calls;
        if paid > world.items.len() {
            // Those that waited for the budget.
            world.violated(check::COSTS, format!("{paid} stories within {COUNTED:?}"), "model");
        }
        let (cost, most) = (world.requests.len() - before, check::allowance(&world, COUNTED));
        if cost > most {
            world.violated(check::COSTS, format!("{cost} requests within {COUNTED:?}"), "upstream");
        }
    }

    fn start(&mut self) {
        self.count += 1;
        let host = format!("w{}", self.count);
        self.shared.tell(format!("fleet      {host} starts"));
        let settings = Settings {
            redis: RedisUrl::at(&host, 6379, 0, None),
            jobs: PathBuf::new(),
            concurrency: 64,
            claim: self.shared.lock().plan.claim,
            prefix: "samovar".to_owned(),
            channel: None,
            default_ttl: TTL,
            drain: Duration::from_secs(5),
            sample: Duration::from_secs(10),
            misses: false,
            listen: Listen::Off,
            hosts: Vec::new(),
            token: None,
            viewer_token: None,
            viewer_values: false,
            read_only: false,
            title: None,
            log: LogFilter::default(),
            log_format: LogFormat::default(),
        };
        let shared = self.shared.clone();
        let reload = Reload::new(move || {
            let texts = {
                let world = shared.lock();
                world.files.texts(&world.plan)
            };
            Jobs::parse(&texts, TTL, &|_| None)
        });
        let jobs = reload.read().unwrap_or_else(|faults| panic!("the plan's job files: {faults:?}"));
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let (stopping, reloading) = (stop.clone(), Arc::clone(&reload));
        let ended = tokio::spawn(async move {
            worker::run(&settings, jobs.into(), reloading, stopping, cut).await.map_err(|e| format!("{e:#}"))
        });
        self.workers.insert(host, Worker { ended, stop, reload });
    }

    /// Notes workers that have ended.
    async fn look(&mut self) {
        let ended: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.ended.is_finished())
            .map(|(host, _)| host.clone())
            .collect();
        for host in ended {
            let Some(worker) = self.workers.remove(&host) else { continue };
            let was_told = worker.stop.is_cancelled();
            let result = worker.ended.await;
            self.shared.tell(format!("fleet      {host} ended: {result:?}"));
            if !was_told || !matches!(result, Ok(Ok(()))) {
                self.shared.lock().violated(check::LIVES, format!("{host} ended: {result:?}"), &host);
            }
        }
    }

    fn any(&self) -> Option<String> {
        let hosts: Vec<&String> = self.workers.keys().collect();
        (!hosts.is_empty()).then(|| hosts[self.shared.lock().random.below(hosts.len())].clone())
    }

    /// Lets a fault of a whole part happen.
    fn strike(&mut self) {
        let disaster = {
            let mut world = self.shared.lock();
            if world.plan.disaster.is_none() || world.violation.is_some() {
                return;
            }
            let kinds = world.plan.disasters.clone();
            world.random.pick(&kinds)
        };
        match disaster {
            Disaster::Kill => self.kill(),
            Disaster::Stop => {
                if let Some(host) = self.any() {
                    self.shared.tell(format!("fleet      {host} is told to stop"));
                    self.shared.lock().stopping.insert(host.clone());
                    self.workers[&host].stop.cancel();
                }
            }
            Disaster::Cut => {
                if let Some(host) = self.any() {
                    self.shared.tell(format!("network    all sockets of {host} break"));
                    self.network.borrow_mut().cut_all(Some(&host));
                }
            }
            Disaster::Restart | Disaster::Lose | Disaster::Rollback => self.restart(disaster),
            Disaster::Flush => {
                self.shared.tell("redis      is flushed");
                self.shared.lock().lost_data();
                self.network.borrow_mut().command(&["FLUSHALL"]);
            }
            Disaster::Outage => {
                let mut world = self.shared.lock();
                let time = world.around(Duration::from_secs(15));
                world.outage = machine::elapsed() + time;
                world.tell(format!("upstream   fails for {time:?}"));
            }
            Disaster::Clock => {
                let step = {
                    let mut world = self.shared.lock();
                    let step = world.random.pick(&[-3_600_000, -30_000, -1_000, -3, 3, 1_000, 30_000, 3_600_000]);
                    world.tell(format!("redis      sets its clock by {step} ms"));
                    world.disturbed = Some(machine::elapsed());
                    if step < 0 {
                        world.went_back();
                    }
                    step
                };
                self.network.borrow_mut().redis.set_clock_by(step);
            }
            Disaster::Vanish => {
                let mut world = self.shared.lock();
                let time = world.around(Duration::from_secs(10));
                world.vanished = machine::elapsed() + time;
                world.tell(format!("upstream   has no artwork for {time:?}"));
            }
            Disaster::Deploy => self.deploy(),
            Disaster::Pause => {
                let is_paused = self.shared.lock().paused.is_some();
                if is_paused { self.resume() } else { self.pause() }
            }
        }
    }

    /// Changes a job file, which one worker after the other reads.
    fn deploy(&mut self) {
        let mut world = self.shared.lock();
        let jobs: Vec<Job> = world.plan.jobs().collect();
        let job = jobs[world.random.below(jobs.len())];
        // A return to an earlier file is a change as well.
        let number = world.random.pick(&[1, 2, 3]);
        *world.files.of(job) = number;
        world.tell(format!("fleet      the file of {} is number {number} from now on", job.name()));
        for worker in self.workers.values() {
            let (wait, reload) = (world.around(Duration::from_secs(8)), Arc::clone(&worker.reload));
            tokio::spawn(async move {
                sleep(wait).await;
                reload.ask();
            });
        }
    }

    fn pause(&mut self) {
        let job = {
            let mut world = self.shared.lock();
            let jobs: Vec<Job> = world.plan.jobs().collect();
            let job = jobs[world.random.below(jobs.len())];
            world.paused = Some((job, machine::elapsed()));
            world.tell(format!("fleet      {} is paused", job.name()));
            job
        };
        self.network.borrow_mut().command(&["SET", &paused(job), "1"]);
    }

    /// Resumes all jobs.
    fn resume(&mut self) {
        self.shared.lock().paused = None;
        let jobs: Vec<Job> = self.shared.lock().plan.jobs().collect();
        for job in jobs {
            let mut network = self.network.borrow_mut();
            network.command(&["DEL", &paused(job)]);
            network.command(&["PUBLISH", "samovar:signal", &format!("due {}", job.name())]);
        }
    }

    /// Drops a worker with all its tasks, wherever they are.
    fn kill(&mut self) {
        let Some(host) = self.any() else { return };
        let Some(worker) = self.workers.remove(&host) else { return };
        worker.ended.abort();
        worker.stop.cancel();
        {
            let mut world = self.shared.lock();
            world.tell(format!("fleet      {host} dies"));
            world.dead.insert(host.clone());
            world.counts.deaths += 1;
        }
        self.network.borrow_mut().cut_all(Some(&host));
    }

    fn restart(&mut self, disaster: Disaster) {
        let time = {
            let mut world = self.shared.lock();
            match disaster {
                Disaster::Rollback | Disaster::Lose => world.lost_data(),
                _ => world.disturbed = Some(machine::elapsed()),
            }
            let time = world.around(Duration::from_secs(2));
            world.tell(format!("redis      is away for {time:?}, and restarts ({disaster:?})"));
            time
        };
        let mut network = self.network.borrow_mut();
        network.take_down(time);
        network.redis.restart(disaster);
        if disaster == Disaster::Rollback {
            // Only now, since what was sent last was carried out before.
            let mut world = self.shared.lock();
            world.went_back();
            world.spent = network.redis.spent();
        }
    }
}

/// Returns the key that says that a job is paused.
fn paused(job: Job) -> String {
    format!("samovar:paused:{{{}}}", job.name())
}

impl crate::world::World {
    /// Notes that Redis lost data.
    fn lost_data(&mut self) {
        self.disturbed = Some(machine::elapsed());
        self.paused = None;
        self.spent = 0;
        self.items.values_mut().for_each(|item| item.unwanted = None);
    }

    /// Notes that Redis's data or clock went back: what was before cannot be compared with what comes after.
    fn went_back(&mut self) {
        self.broke = machine::elapsed();
        self.lost = Some(self.broke);
        for item in self.items.values_mut() {
            (item.handled, item.seen) = (None, None);
        }
    }
}
