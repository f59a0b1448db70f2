//! Editors, a service that loads, and readers.

use std::sync::Arc;
use std::time::Duration;

use samovar::cache::{Cache, Invalidation, InvalidationPublisher};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::check::key;
use crate::machine;
use crate::world::{Shared, World};

/// Saves and publishes, until all is quiet.
pub(crate) async fn edit(shared: Shared) {
    let cache = connect(&shared, "editor").await;
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
        shared.lock().busy_editors -= 1;
    }
}

/// An edit that is saved and not published.
struct Edit {
    names: Vec<String>,
    evicts: bool,
    is_bare: bool,
    /// All items are named at once: by pattern, by job or by tag.
    whole: usize,
}

/// Publishes until Redis confirms it.
async fn publish(shared: &Shared, cache: &Cache, publisher: &InvalidationPublisher, edit: &Edit) {
    let message = match edit.whole {
        0 => Invalidation::keys(edit.names.iter().map(|name| key(name))),
        1 => Invalidation::pattern("art:*"),
        2 => Invalidation::job("art"),
        _ => Invalidation::tag("all"),
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
        let kinds = if self.plan.is_tagged() { 4 } else { 3 };
        let whole = if count == 1 { 0 } else { self.random.below(kinds) };
        let mut evicts = self.random.chance(evict);
        for name in &names {
            let is_gone = self.random.chance(gone);
            if let Some(item) = self.items.get_mut(name) {
                item.last += 1;
                item.revisions.push((machine::elapsed(), (!is_gone).then_some(item.last)));
                // A tag is told by values; an entry without one is named by its key.
                evicts |= is_gone;
            }
        }
        self.counts.edits += 1;
        self.busy_editors += 1;
        let is_bare = self.random.chance(channel);
        self.tell(format!("editor     saves {names:?} (evicts: {evicts}, bare: {is_bare}, by: {whole})"));
        Some(Edit { names, evicts, is_bare, whole })
    }
}

/// Loads through the library, until all is quiet.
pub(crate) async fn load(shared: Shared) {
    let cache = connect(&shared, "service").await;
    loop {
        let (pause, name, is_demand) = {
            let mut world = shared.lock();
            if world.is_quiet {
                return;
            }
            let all: Vec<String> = world.items.keys().cloned().collect();
            let name = all[world.random.below(all.len())].clone();
            (world.around(Duration::from_secs(2)), name, world.random.chance(500))
        };
        sleep(pause).await;
        if is_demand {
            let got = cache.get::<Value>(&name).await;
            shared.tell(format!("service    reads {name}: {}", told(got.map_err(|e| e.to_string()))));
            continue;
        }
        let loaded: Result<Value, Arc<String>> = cache.get_or_load(&name, || ask(shared.clone(), name.clone())).await;
        shared.tell(format!("service    loads {name}: {}", told(loaded.map(Some).map_err(|e| e.to_string()))));
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

async fn connect(shared: &Shared, host: &str) -> Cache {
    loop {
        let built = Cache::builder(format!("redis://{host}")).prefix("art").demand(true).build().await;
        match built {
            Ok(cache) => return cache,
            Err(e) => shared.tell(format!("{host:10} cannot connect: {e}")),
        }
        sleep(Duration::from_millis(500)).await;
    }
}
