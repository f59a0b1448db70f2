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
}

/// The workers, and how many there have been.
pub(crate) struct Fleet<'a> {
    shared: Shared,
    network: &'a RefCell<Network>,
    jobs: Arc<Jobs>,
    workers: BTreeMap<String, Worker>,
    count: usize,
}

impl<'a> Fleet<'a> {
    /// Returns a fleet without workers.
    pub(crate) fn new(shared: Shared, network: &'a RefCell<Network>) -> Self {
        let jobs = Jobs::parse(&shared.lock().plan.files(), TTL, &|_| None);
        let jobs = Arc::new(jobs.unwrap_or_else(|faults| panic!("the plan's job files: {faults:?}")));
        Self { shared, network, jobs, workers: BTreeMap::new(), count: 0 }
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
        if let Some((told, subject)) = reason {
            return self.shared.lock().violated(check::FRESH, told, &subject);
        }
        let unknown = self.network.borrow().redis.unknown().join(", ");
        if !unknown.is_empty() {
            return self.shared.lock().violated(check::KNOWN, unknown, "unknown");
        }
        let before = self.shared.lock().requests.len();
        sleep(COUNTED).await;
        let mut world = self.shared.lock();
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
            log: LogFilter::default(),
            log_format: LogFormat::default(),
        };
        let files = self.shared.lock().plan.files();
        let reload = Reload::new(move || Jobs::parse(&files, TTL, &|_| None));
        let (stop, cut, jobs) = (CancellationToken::new(), CancellationToken::new(), Arc::clone(&self.jobs));
        let stopping = stop.clone();
        let ended = tokio::spawn(async move {
            worker::run(&settings, jobs, reload, stopping, cut).await.map_err(|e| format!("{e:#}"))
        });
        self.workers.insert(host, Worker { ended, stop });
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
                    if step < 0 {
                        world.went_back();
                    }
                    step
                };
                self.network.borrow_mut().redis.set_clock_by(step);
            }
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
            if disaster == Disaster::Rollback {
                world.went_back();
            }
            let time = world.around(Duration::from_secs(2));
            world.tell(format!("redis      is away for {time:?}, and restarts ({disaster:?})"));
            time
        };
        let mut network = self.network.borrow_mut();
        network.take_down(time);
        network.redis.restart(disaster);
    }
}

impl crate::world::World {
    /// Notes that Redis's data or clock went back: what was before cannot be compared with what comes after.
    fn went_back(&mut self) {
        self.broke = machine::elapsed();
        self.lost = Some(self.broke);
        for item in self.items.values_mut() {
            item.handled = None;
        }
    }
}
