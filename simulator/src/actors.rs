//! Editors, a service that loads, and readers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use samovar::cache::{Cache, Invalidation, InvalidationPublisher};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::files::Job;
use crate::machine;
use crate::world::{Shared, World};

/// Saves and publishes, until all is quiet.
pub(crate) async fn edit(shared: Shared) {
    let cache = connect(&shared, "editor", Job::Art).await;
    let publisher = InvalidationPublisher::new(&cache);
    loop {
        let pause = {
            let mut world = shared.lock();
            if world.is_quiet {
                return;
            }
            let mean = world.plan.edit;
            world.around(mean)
        };
        sleep(pause).await;
        let Some(edit) = shared.lock().save() else { return };
        publish(&shared, &cache, &publisher, &edit).await;
        let mut world = shared.lock();
        world.busy_editors -= 1;
        world.has_published(&edit);
    }
}

/// An edit that is saved and not published.
struct Edit {
    job: Job,
    names: Vec<String>,
    evicts: bool,
    is_bare: bool,
    /// All entries are named at once: by pattern, by job or by tag.
    whole: usize,
    /// The version that the message announces.
    version: Option<u32>,
}

/// Publishes until Redis confirms it.
async fn publish(shared: &Shared, cache: &Cache, publisher: &InvalidationPublisher, edit: &Edit) {
    let message = match edit.whole {
        0 => Invalidation::keys(edit.names.iter().map(|name| edit.job.key(name))),
        1 => Invalidation::pattern(edit.job.key("*")),
        2 => Invalidation::job(edit.job.name()),
        _ => Invalidation::tag("all"),
    };
    let message = match edit.version {
        Some(version) => message.version(version.into()),
        None => message,
    };
    let message = if edit.evicts { message.evict() } else { message };
    loop {
        let told = if edit.is_bare {
            cache.publish("samovar:invalidate", &message).await.map(|heard| format!("heard by {heard}"))
        } else {
            publisher.publish(&message).await
        };
        match told {
            Ok(told) => return shared.tell(format!("editor     published {:?}: {told}", edit.names)),
            Err(e) => shared.tell(format!("editor     publishes {:?} again: {e}", edit.names)),
        }
        sleep(Duration::from_millis(200)).await;
    }
}

impl World {
    /// Saves a new revision of some items at the upstream; `None` once all is quiet.
    fn save(&mut self) -> Option<Edit> {
        if self.is_quiet {
            return None;
        }
        let all: Vec<String> = self.items.keys().cloned().collect();
        let count = if self.random.chance(800) { 1 } else { all.len() };
        let names: Vec<String> = if count == 1 { vec![all[self.random.below(all.len())].clone()] } else { all };
        let (gone, evict, channel) = (self.plan.gone, self.plan.evict, self.plan.channel);
        let jobs: Vec<Job> = self.plan.jobs().collect();
        let job = if self.random.chance(150) { jobs[self.random.below(jobs.len())] } else { Job::Art };
        let kinds = if self.plan.is_tagged && job == Job::Art { 4 } else { 3 };
        let whole = if count == 1 { 0 } else { self.random.below(kinds) };
        let mut evicts = self.random.chance(evict);
        let mut version = None;
        for name in &names {
            let is_gone = self.random.chance(gone);
            if let Some(item) = self.items.get_mut(name)
                && job == Job::Art
            {
                item.last += 1;
                item.revisions.push((machine::elapsed(), (!is_gone).then_some(item.last)));
                // A tag is told by values; an entry without one is named by its key.
                evicts |= is_gone;
                version = (count == 1 && !is_gone).then_some(item.last);
            }
        }
        let version = version.filter(|_| self.plan.versions && self.random.chance(500));
        self.change_feed();
        self.counts.edits += 1;
        self.busy_editors += 1;
        let is_bare = self.random.chance(channel);
        let (name, told) = (job.name(), version.map_or_else(String::new, |version| format!(", version {version}")));
        self.tell(format!("editor     saves {name} {names:?} (evicts: {evicts}, bare: {is_bare}, by: {whole}{told})"));
        for name in &names {
            self.named.entry(job.key(name)).or_default().pending += 1;
            if !evicts {
                self.wants(name);
            }
        }
        Some(Edit { job, names, evicts, is_bare, whole, version })
    }

    /// Lets the feed name another artwork, or one less.
    fn change_feed(&mut self) {
        if self.plan.fed.is_empty() || !self.random.chance(200) {
            return;
        }
        let name = self.plan.fed[self.random.below(self.plan.fed.len())].clone();
        if !self.feed.remove(&name) {
            self.feed.insert(name);
        }
        self.tell(format!("upstream   the feed names {:?} from now on", self.feed));
    }

    /// Notes that the message of an edit is published.
    fn has_published(&mut self, edit: &Edit) {
        for name in &edit.names {
            let named = self.named.entry(edit.job.key(name)).or_default();
            named.pending -= 1;
            named.last = machine::elapsed();
        }
    }

    /// Notes that a message or a service may make an item's entry due.
    fn wants(&mut self, name: &str) {
        if let Some(item) = self.items.get_mut(name) {
            (item.wanted, item.unwanted) = (machine::elapsed(), None);
        }
    }
}

/// Loads through the library, until all is quiet.
pub(crate) async fn load(shared: Shared) {
    let mut caches = BTreeMap::new();
    let jobs: Vec<Job> = shared.lock().plan.jobs().collect();
    for job in jobs {
        caches.insert(job, connect(&shared, "service", job).await);
    }
    loop {
        let (pause, name, reads) = {
            let mut world = shared.lock();
            if world.is_quiet {
                return;
            }
            let all: Vec<String> = world.items.keys().cloned().collect();
            let name = all[world.random.below(all.len())].clone();
            let jobs: Vec<Job> = caches.keys().copied().collect();
            let job = jobs[world.random.below(jobs.len())];
            (world.around(Duration::from_secs(2)), name, world.random.chance(500).then_some(job))
        };
        sleep(pause).await;
        shared.lock().wants(&name);
        if let Some(job) = reads {
            let got = caches[&job].get::<Value>(&name).await;
            shared.tell(format!("service    reads {}: {}", job.key(&name), told(got.map_err(|e| e.to_string()))));
            shared.lock().wants(&name);
            continue;
        }
        let load = || ask(shared.clone(), name.clone());
        let loaded: Result<Value, Arc<String>> = caches[&Job::Art].get_or_load(&name, load).await;
        shared.tell(format!("service    loads {name}: {}", told(loaded.map(Some).map_err(|e| e.to_string()))));
        shared.lock().wants(&name);
    }
}

fn told(value: Result<Option<Value>, String>) -> String {
    match value {
        Ok(Some(value)) => value.to_string(),
        Ok(None) => "nothing".to_owned(),
        Err(e) => e,
    }
}

/// Asks the upstream for the service.
async fn ask(shared: Shared, name: String) -> Result<Value, String> {
    let (number, revision, wait) = {
        let mut world = shared.lock();
        let number = world.arrived(&name);
        let revision = world.items.get(&name).and_then(|item| item.at(machine::elapsed()));
        world.tell(format!("upstream   {name} #{number} asked by the service, and has {revision:?}"));
        let most = world.plan.answer;
        (number, revision, world.random.within(0..=most))
    };
    sleep(Duration::from_millis(wait)).await;
    let revision = revision.ok_or_else(|| "there is none".to_owned())?;
    Ok(json!({"name": name, "rev": revision, "n": number}))
}

async fn connect(shared: &Shared, host: &str, job: Job) -> Cache {
    loop {
        let built = Cache::builder(format!("redis://{host}")).prefix(job.name()).demand(true).build().await;
        match built {
            Ok(cache) => return cache,
            Err(e) => shared.tell(format!("{host:10} cannot connect: {e}")),
        }
        sleep(Duration::from_millis(500)).await;
    }
}
