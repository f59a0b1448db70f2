//! Storms: an editor saves and invalidates an entry again and again, and fetches take their time.

use crate::engine::Engine;
use crate::explorer::Random;
use crate::properties::{COSTS, STARVED, settle};
use crate::world::{Action, Job, Kind, Stage, Step, World, violated};

/// The course of a storm.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// The pause between two invalidations (ms).
    pub every: i64,
    /// The time that a fetch takes (ms).
    pub takes: i64,
    /// The time that it lasts (ms).
    pub lasts: i64,
    /// The job.
    pub job: Job,
    /// The tag is invalidated, of a value that is fetched for the first time.
    pub by_tag: bool,
}

impl Storm {
    /// Returns a random storm.
    pub fn of(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut below = |limit: usize| random.below(limit) as i64;
        let (every, takes) = (1 + below(400), 1 + below(1_500));
        let job = Job { paid: below(3) == 0, recheck: below(2) == 0, channel: below(2) == 0, ..Job::default() };
        let by_tag = below(3) == 0;
        let lasts = if job.paid { 60_000 } else { 15_000 };
        Self { every, takes, lasts, job: Job { tagged: by_tag, ..job }, by_tag }
    }

    /// Returns the longest time from one landing to the next (ms).
    fn longest_wait(&self) -> i64 {
        // Two fetches of which the first is fenced, what is held off, and the steps themselves.
        2 * self.takes + self.every + if self.job.paid { 10_000 } else { 250 } + 500
    }

    /// Lets it rage, and then all come to rest.
    ///
    /// # Errors
    /// Fetches do not land, or are too many.
    pub fn rage(&self, engine: &Engine) -> Result<u32, crate::world::Violation> {
        let mut world = World::new(self.job, &[(Kind::Refresh, u8::MAX), (Kind::RefreshTag, u8::MAX)]);
        engine.set_clock(&mut world.db, crate::world::EPOCH);
        let steps = if self.by_tag { 0 } else { 7 };
        for action in [Action::Manual(0)].into_iter().chain(vec![Action::Work(0); steps]) {
            world.apply(engine, action)?;
        }
        (world.fetches, world.landed) = (0, 0);
        let (began, mut edit_at, mut landed_at) = (world.now(), world.now(), world.now());
        let mut ready = [0; 2];
        while world.now() < began + self.lasts {
            let now = world.now();
            if now >= edit_at {
                // A worker that hears of the same entry again handles both at once, with the later time.
                if world.messages.len() < 2 {
                    self.edit(engine, &mut world)?;
                }
                edit_at = now + self.every;
            }
            self.work(engine, &mut world, &mut ready, &mut landed_at)?;
            if world.now() > landed_at + self.longest_wait() {
                return violated(STARVED, format!("{self:?}: nothing landed for {} ms", world.now() - landed_at));
            }
            let waits = world.messages.iter().map(|message| message.retry_at).chain(ready);
            let next = waits.chain([edit_at]).chain(world.next_event(engine)).filter(|at| *at > world.now()).min();
            engine.set_clock(&mut world.db, next.unwrap_or(edit_at));
        }
        let pause = if self.job.paid { 10_000 } else { 250 };
        // One lands in each pause, and the one before it may be fenced.
        let most = u32::try_from(2 * self.lasts / pause.max(self.takes)).unwrap_or(0) + 4;
        if world.fetches > most {
            return violated(COSTS, format!("{self:?}: {} requests, and {most} are allowed", world.fetches));
        }
        settle(engine, &world)?;
        Ok(world.fetches)
    }

    fn edit(&self, engine: &Engine, world: &mut World) -> Step {
        if !self.by_tag {
            return world.apply(engine, Action::Refresh(0));
        }
        // All its content has the tag.
        if !world.is_tagged(world.known[0].content + 1) {
            world.known[0].content += 1;
        }
        world.apply(engine, Action::RefreshTag)
    }

    fn work(&self, engine: &Engine, world: &mut World, ready: &mut [i64; 2], landed_at: &mut i64) -> Step {
        for _ in 0..50 {
            let now = world.now();
            let mut is_idle = true;
            for action in world.fair(engine) {
                if let Action::Work(n) = action
                    && ready[n] > now
                {
                    continue;
                }
                if !world.can(engine, action) {
                    continue;
                }
                let (before, landed) = (world.clone(), world.landed);
                let stage = |world: &World, n: usize| world.workers[n].task.as_ref().map(|task| task.stage.clone());
                world.apply(engine, action)?;
                if let Action::Work(n) = action
                    && stage(&before, n) == Some(Stage::Leased)
                {
                    ready[n] = now + self.takes;
                }
                is_idle &= *world == before;
                if world.landed > landed {
                    *landed_at = now;
                }
            }
            if is_idle {
                break;
            }
        }
        Ok(())
    }
}
