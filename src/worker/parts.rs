//! The parts of one generation, built and not yet running.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::info;
use ulid::Ulid;

use super::bulk_runtime::BulkRuntime;
use super::connect::{BLOCKING, COMMAND, connect};
use super::heartbeat::{Heartbeat, dead_after};
use super::maintenance::{
    self, Auditor, Describer, EvictionMonitor, JobCleaner, KeyRights, Recorder, Remaker, Rescuer, RestartMonitor,
    Retrier, Revalidator, Sweeper, UpstreamMonitor,
};
use super::refusal_report::RefusalReport;
use super::turn::Turn;
use super::{Process, host};
use crate::admin;
use crate::agenda::{Agenda, Wakeup};
use crate::config::Settings;
use crate::entry::UpstreamName;
use crate::job::{Jobs, KnownJobs, Reload};
use crate::ops::Ops;
use crate::popularity::{Popularity, Sampler};
use crate::protocol::Keys;
use crate::queue::{Dispatcher, Queue};
use crate::redis::{Connection, Health, WrongTypes};
use crate::source::{Gate, Sources, UpstreamMemory};
use crate::store::Store;
use crate::telemetry::{HistoryWriter, Telemetry};
use crate::trigger::invalidation::PipelineLoop;
use crate::trigger::{Channel, Clock, Complaints, Cron, GapDetector, Inbox, Invalidator, Misses, Pipeline, Watermark};
use crate::warmer::{Finisher, Warmer};

/// The time after which a command for an HTTP request fails: a client hears that Redis is away instead of waiting.
const HTTP_COMMAND: Duration = Duration::from_secs(2);

/// All parts of one generation.
pub(super) struct Parts<'a> {
    pub(super) shared: Shared<'a>,
    /// Set when the channel is heard and any gap before that is noted.
    pub(super) gaps_checked: CancellationToken,
    pub(super) listeners: Listeners,
    pub(super) producers: Producers,
    pub(super) warming: Warming,
    pub(super) finisher: Finisher,
    pub(super) admin: admin::Parts,
}

/// The values that most parts need.
pub(super) struct Shared<'a> {
    settings: &'a Settings,
    /// The worker's name, unique in the fleet.
    pub(super) worker: Arc<str>,
    pub(super) redis: Connection,
    pub(super) keys: Keys,
    pub(super) jobs: Arc<Jobs>,
    known_jobs: Arc<KnownJobs>,
    store: Store,
    agenda: Agenda,
    pub(super) queue: Queue,
    sources: Sources,
    pub(super) gates: BTreeMap<UpstreamName, Arc<Gate>>,
    popularity: Popularity,
    invalidator: Invalidator,
    wakeup: Arc<Wakeup>,
    /// The number of workers that live.
    workers: Arc<AtomicUsize>,
    pub(super) health: Health,
    telemetry: Telemetry,
    pub(super) history: HistoryWriter,
    reload: Arc<Reload>,
}

/// The loops that run from the start: they hear invalidations and look after the fleet.
pub(super) struct Listeners {
    pub(super) channel: Channel,
    pub(super) inbox: Inbox,
    pub(super) pipeline: PipelineLoop,
    pub(super) sweeper: Sweeper,
    pub(super) describer: Describer,
    pub(super) key_rights: KeyRights,
    pub(super) revalidator: Revalidator,
    pub(super) heartbeat: Heartbeat,
}

/// The loops that run once the generation has its turn: they make entries due and claim them.
pub(super) struct Producers {
    pub(super) cron: Cron,
    pub(super) misses: Option<Misses>,
    pub(super) sampler: Sampler,
    pub(super) dispatcher: Dispatcher,
    pub(super) remaker: Remaker,
    pub(super) retrier: Retrier,
    pub(super) recorder: Recorder,
    pub(super) auditor: Auditor,
}

/// The warmers of the chunks that come from the queue.
pub(super) struct Warming {
    /// Warms high-priority entries, on the main runtime.
    pub(super) warmer: Arc<Warmer>,
    /// Warms all other entries, on the bulk runtime and over its connections.
    pub(super) bulk_warmer: Arc<Warmer>,
    pub(super) bulk_runtime: BulkRuntime,
}

impl<'a> Parts<'a> {
    /// Builds the parts of a generation that is in charge once `turn` begins. Waits for Redis until `stop`.
    ///
    /// # Errors
    /// `stop` came first, or the system gives no threads or no HTTP client.
    pub(super) async fn build(
        process: &Process<'a>,
        jobs: Arc<Jobs>,
        turn: &Turn,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let reading = connect(process.settings, BLOCKING, stop).await?.telling(&process.wrong_types);
        let shared = Shared::new(process, jobs)?;
        let (warming, finisher) = Box::pin(shared.warming(&process.wrong_types, stop)).await?;
        let (pipeline, pipeline_loop) = Pipeline::new(shared.invalidator.clone(), shared.telemetry.clone());
        let (cron, revalidator) = (shared.cron(stop), shared.revalidator());
        let job_cleaner = shared.job_cleaner();
        let watermark = Watermark::of(&shared.worker);
        let channel = shared.channel(&pipeline, Arc::clone(&revalidator.wakeup), Arc::clone(&cron.wakeup));
        let gaps_checked = channel.gap_detector.checked();
        let admin = shared.admin(&cron, &pipeline, &warming.warmer);
        let producers = Producers {
            misses: shared.settings.misses.then(|| shared.misses()),
            sampler: shared.sampler(),
            dispatcher: shared.dispatcher(),
            remaker: shared.remaker(),
            retrier: shared.retrier(),
            recorder: shared.recorder(),
            auditor: shared.auditor(),
            cron: cron.clone(),
        };
        let listeners = Listeners {
            channel,
            sweeper: shared.sweeper(job_cleaner.clone()),
            describer: shared.describer(turn.clone()),
            key_rights: KeyRights::new(shared.redis.clone(), Arc::clone(&shared.jobs), shared.health.keys.clone()),
            heartbeat: shared.heartbeat(cron, job_cleaner, watermark.clone(), turn.clone()),
            inbox: shared.inbox(reading, pipeline, watermark),
            pipeline: pipeline_loop,
            revalidator,
        };
        Ok(Self { shared, gaps_checked, listeners, producers, warming, finisher, admin })
    }
}

impl<'a> Shared<'a> {
    fn new(process: &Process<'a>, jobs: Arc<Jobs>) -> anyhow::Result<Self> {
        let Process { settings, redis, telemetry, reload, wrong_types, memory, .. } = process;
        let health = Health { wrong_types: wrong_types.clone(), ..Health::default() };
        let worker: Arc<str> = format!("{}-{}", host(), Ulid::generate()).into();
        let keys = settings.keys();
        info!(
            worker = &*worker,
            redis = %settings.redis,
            database = keys.database(),
            channel = keys.invalidate_channel(),
            jobs = jobs.jobs.len(),
            "samovar {}",
            env!("CARGO_PKG_VERSION")
        );
        let id = maintenance::id(&worker);
        let store = Store::new(redis.clone(), keys.clone()).held_by(id);
        let agenda = Agenda::new(redis.clone(), keys.clone()).claiming_as(&worker);
        let gates = gates(&jobs, redis, &keys, settings.concurrency, (id, memory));
        Ok(Self {
            settings,
            queue: Queue::new(redis.clone(), &keys, &worker).showing(&health.queue),
            sources: Sources::new(&jobs).context("cannot make HTTP clients")?,
            gates,
            popularity: Popularity::new(redis.clone(), keys.clone()),
            invalidator: Invalidator::new(
                redis.clone(),
                keys.clone(),
                Arc::clone(&jobs),
                store.clone(),
                agenda.clone(),
            ),
            wakeup: Arc::new(Wakeup::of(&jobs)),
            workers: Arc::new(AtomicUsize::new(1)),
            telemetry: telemetry.of(&worker),
            history: HistoryWriter::new(redis.clone(), keys.clone()),
            reload: Arc::clone(reload),
            redis: redis.clone(),
            worker,
            keys,
            known_jobs: Arc::new(KnownJobs::from(&*jobs)),
            jobs,
            store,
            agenda,
            health,
        })
    }

    /// Builds both warmers and their finisher. Waits for the bulk runtime's connections until `stop`.
    async fn warming(&self, wrong_types: &WrongTypes, stop: &CancellationToken) -> anyhow::Result<(Warming, Finisher)> {
        let (warmer, finisher) = Warmer::new(
            Arc::clone(&self.jobs),
            self.store.clone(),
            self.agenda.clone(),
            self.sources.clone(),
            self.gates.clone(),
            self.telemetry.clone(),
            self.popularity.clone(),
            self.settings.claim,
            stop.clone(),
        );
        let bulk_runtime = BulkRuntime::new("warming").context("cannot start threads")?;
        let (redis, sources) = self.bulk_connections(&bulk_runtime, wrong_types, stop).await?;
        let bulk_warmer = warmer.with_connections(
            self.store.clone().over(redis.clone()),
            Agenda::new(redis.clone(), self.keys.clone()),
            sources,
            Popularity::new(redis, self.keys.clone()),
        );
        let finisher = finisher.waking(Arc::clone(&self.wakeup)).noting(&self.health.troubles);
        Ok((Warming { warmer, bulk_warmer, bulk_runtime }, finisher))
    }

    /// Connects to Redis and to upstreams on the bulk runtime: a connection belongs to the threads that make it.
    async fn bulk_connections(
        &self,
        bulk_runtime: &BulkRuntime,
        wrong_types: &WrongTypes,
        stop: &CancellationToken,
    ) -> anyhow::Result<(Connection, Sources)> {
        let (settings, jobs, stop) = (self.settings.clone(), Arc::clone(&self.jobs), stop.clone());
        let wrong_types = wrong_types.clone();
        let connecting = async move {
            let redis = connect(&settings, COMMAND, &stop).await?.telling(&wrong_types);
            Ok((redis, Sources::new(&jobs).context("cannot make HTTP clients")?))
        };
        bulk_runtime.handle().spawn(connecting).await.context("connecting panicked: please report this")?
    }

    fn channel(&self, pipeline: &Pipeline, revalidator: Arc<Notify>, schedules: Arc<Notify>) -> Channel {
        let (redis, keys) = (self.redis.clone(), self.keys.clone());
        let (worker, jobs) = (Arc::clone(&self.worker), Arc::clone(&self.jobs));
        Channel {
            gap_detector: GapDetector::new(redis.clone(), keys.clone(), worker, jobs, self.store.clone()),
            redis,
            keys,
            pipeline: pipeline.clone(),
            revalidator,
            schedules,
            wakeup: Arc::clone(&self.wakeup),
            queue: self.queue.clone(),
            gates: self.gates.clone(),
            telemetry: self.telemetry.clone(),
            loop_health: self.health.subscription.clone(),
        }
    }

    /// Builds the inbox's reader, over a connection of its own, since reads block it.
    fn inbox(&self, reading: Connection, pipeline: Pipeline, watermark: Watermark) -> Inbox {
        Inbox {
            redis: reading,
            control: self.redis.clone(),
            keys: self.keys.clone(),
            pipeline,
            store: self.store.clone(),
            watermark,
            telemetry: self.telemetry.clone(),
            worker: Arc::clone(&self.worker),
            claim: self.settings.claim,
            complaints: Complaints::of("a message in the inbox"),
            loop_health: self.health.inbox.clone(),
        }
    }

    fn revalidator(&self) -> Revalidator {
        Revalidator {
            redis: self.redis.clone(),
            keys: self.keys.clone(),
            jobs: Arc::clone(&self.jobs),
            agenda: self.agenda.clone(),
            store: self.store.clone(),
            invalidator: self.invalidator.clone(),
            popularity: self.popularity.clone(),
            worker: Arc::clone(&self.worker),
            claim: self.settings.claim,
            wakeup: Arc::new(Notify::new()),
            troubles: self.health.troubles.of("the revalidator"),
        }
    }

    fn remaker(&self) -> Remaker {
        Remaker {
            ops: Ops::new(self.redis.clone(), self.keys.clone(), Arc::clone(&self.known_jobs)),
            jobs: Arc::clone(&self.jobs),
            sources: self.sources.clone(),
            popularity: self.popularity.clone(),
            queue: self.queue.clone(),
            worker: Arc::clone(&self.worker),
            claim: self.settings.claim,
            dead_after: dead_after(self.settings.claim),
            troubles: self.health.troubles.of("the remaker"),
        }
    }

    fn retrier(&self) -> Retrier {
        Retrier {
            ops: Ops::new(self.redis.clone(), self.keys.clone(), Arc::clone(&self.known_jobs)),
            worker: Arc::clone(&self.worker),
            every: maintenance::retrier::EVERY,
            troubles: self.health.troubles.of("the retrier").every(maintenance::retrier::EVERY),
        }
    }

    fn recorder(&self) -> Recorder {
        Recorder {
            ops: Ops::new(self.redis.clone(), self.keys.clone(), Arc::clone(&self.known_jobs)),
            troubles: self.health.troubles.of("the recorder").every(maintenance::RECORDED),
        }
    }

    fn auditor(&self) -> Auditor {
        Auditor {
            ops: Ops::new(self.redis.clone(), self.keys.clone(), Arc::clone(&self.known_jobs)),
            jobs: Arc::clone(&self.jobs),
            sources: self.sources.clone(),
            gates: self.gates.clone(),
            troubles: self.health.troubles.of("the auditor").every(maintenance::AUDITED),
        }
    }

    fn job_cleaner(&self) -> JobCleaner {
        JobCleaner::new(self.redis.clone(), self.keys.clone(), Arc::clone(&self.jobs)).noting(&self.health.troubles)
    }

    fn sweeper(&self, job_cleaner: JobCleaner) -> Sweeper {
        Sweeper {
            redis: self.redis.clone(),
            keys: self.keys.clone(),
            jobs: Arc::clone(&self.jobs),
            store: self.store.clone(),
            job_cleaner,
            troubles: self.health.troubles.of("the sweeper").every(maintenance::SWEEPS),
        }
    }

    fn describer(&self, turn: Turn) -> Describer {
        Describer {
            ops: Ops::new(self.redis.clone(), self.keys.clone(), Arc::clone(&self.known_jobs)),
            queue: self.queue.clone(),
            worker: Arc::clone(&self.worker),
            dead_after: dead_after(self.settings.claim),
            store: self.store.clone(),
            troubles: self.health.troubles.of("describing jobs"),
            turn,
        }
    }

    fn heartbeat(&self, cron: Cron, job_cleaner: JobCleaner, watermark: Watermark, turn: Turn) -> Heartbeat {
        let (redis, keys, jobs) = (&self.redis, &self.keys, &self.jobs);
        let dead_after = dead_after(self.settings.claim);
        Heartbeat {
            has_waited: false,
            queue: self.queue.clone(),
            rescuer: Rescuer {
                jobs: Arc::clone(jobs),
                queue: self.queue.clone(),
                agenda: self.agenda.clone(),
                store: self.store.clone(),
                gates: self.gates.clone(),
                dead_after,
                troubles: self.health.troubles.of("the rescuer"),
            },
            clock: Clock::new(redis.clone(), keys.clone()),
            restarts: RestartMonitor {
                redis: redis.clone(),
                redis_url: self.settings.redis.clone(),
                keys: keys.clone(),
                store: self.store.clone(),
                cron,
                job_cleaner,
                watermark,
                troubles: self.health.troubles.of("the heartbeat"),
                is_set_up: false,
                has_checked: false,
                gap_noted: None,
            },
            evictions: EvictionMonitor::new(redis.clone(), keys.clone(), Arc::clone(jobs)),
            upstreams: UpstreamMonitor {
                gates: self.gates.clone(),
                jobs: Arc::clone(jobs),
                agenda: self.agenda.clone(),
                troubles: self.health.troubles.of("the heartbeat"),
                opened: BTreeSet::new(),
            },
            workers: Arc::clone(&self.workers),
            dead_after,
            loop_health: self.health.beat.clone(),
            refusal_report: RefusalReport::new(
                Ops::new(redis.clone(), keys.clone(), Arc::clone(&self.known_jobs)),
                Arc::clone(&self.reload),
                Arc::clone(&self.worker),
            ),
            turn,
        }
    }

    fn cron(&self, stop: &CancellationToken) -> Cron {
        Cron {
            popularity: self.popularity.clone(),
            redis: self.redis.clone(),
            keys: self.keys.clone(),
            jobs: Arc::clone(&self.jobs),
            agenda: self.agenda.clone(),
            store: self.store.clone(),
            sources: self.sources.clone(),
            gates: self.gates.clone(),
            claim: self.settings.claim,
            wakeup: Arc::new(Notify::new()),
            troubles: self.health.troubles.of("cron"),
            stop: stop.clone(),
        }
    }

    fn misses(&self) -> Misses {
        Misses {
            redis: self.redis.clone(),
            keys: self.keys.clone(),
            jobs: Arc::clone(&self.jobs),
            agenda: self.agenda.clone(),
            worker: Arc::clone(&self.worker),
        }
    }

    fn sampler(&self) -> Sampler {
        Sampler {
            redis: self.redis.clone(),
            keys: self.keys.clone(),
            jobs: Arc::clone(&self.jobs),
            agenda: self.agenda.clone(),
            popularity: self.popularity.clone(),
            every: self.settings.sample,
            claim: self.settings.claim,
            troubles: self.health.troubles.of("the sampler").every(self.settings.sample),
        }
    }

    fn dispatcher(&self) -> Dispatcher {
        Dispatcher {
            jobs: Arc::clone(&self.jobs),
            agenda: self.agenda.clone(),
            store: self.store.clone(),
            queue: self.queue.clone(),
            gates: self.gates.clone(),
            wakeup: Arc::clone(&self.wakeup),
            workers: Arc::clone(&self.workers),
            concurrency: self.settings.concurrency,
            claim: self.settings.claim,
            loop_health: self.health.agenda.clone(),
            troubles: self.health.troubles.of("the dispatcher"),
            telemetry: self.telemetry.clone(),
        }
    }

    fn admin(&self, cron: &Cron, pipeline: &Pipeline, warmer: &Arc<Warmer>) -> admin::Parts {
        let redis = self.redis.clone().with_timeout(HTTP_COMMAND);
        admin::Parts {
            health: self.health.clone(),
            queue: Queue::new(redis.clone(), &self.keys, ""),
            dead_after: dead_after(self.settings.claim),
            ops: Ops::new(redis, self.keys.clone(), Arc::clone(&self.known_jobs)),
            invalidator: self.invalidator.clone(),
            backlog: pipeline.backlog().clone(),
            cron: cron.clone(),
            gates: self.gates.clone(),
            warmer: Arc::downgrade(warmer),
            workers: Arc::clone(&self.workers),
            worker: Arc::clone(&self.worker),
        }
    }
}

/// Builds the gates to all upstreams, for the worker of this id, in a process with this memory.
fn gates(
    jobs: &Jobs,
    redis: &Connection,
    keys: &Keys,
    concurrency: usize,
    (worker, memory): (&str, &UpstreamMemory),
) -> BTreeMap<UpstreamName, Arc<Gate>> {
    let gate = |(name, upstream): (&UpstreamName, &Arc<crate::job::Upstream>)| {
        let gate =
            Gate::new(Arc::clone(upstream), redis.clone(), keys, concurrency).held_by(worker).remembering(memory);
        (name.clone(), Arc::new(gate))
    };
    jobs.upstreams.iter().map(gate).collect()
}
