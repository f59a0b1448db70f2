//! The runs of Redis's servers, and the marks left on them: they tell whether Redis still holds what it acknowledged.
//!
//! A lone server has a mark with its run. On a Cluster, the mark lists all masters, each as `id/run/slot`, and the ids
//! of replicas. Each master has a mark of its own, at a slot that it serves. Data may be lost if
//!
//! - a known master has another run: it was restarted;
//! - an unknown master was a replica: it was promoted;
//! - the own mark of a known master is gone, whoever serves its slot by now: the master was flushed, or its slots were
//!   given to others without their keys. Slots that are moved take the marks along.
//!
//! A new master that slots move to has lost nothing. Nothing is forgotten of a master that does not answer.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::PoisonError;

use futures_util::future::{join_all, try_join_all};
use redis::RedisResult;

use super::cluster::topology::Topology;
use super::endpoint::Address;
use super::{Connection, RedisTime};
use crate::protocol::Keys;

/// The prefix of a run that is the digest of a script.
const SCRIPT: &str = "script:";
/// Why a master may have lost data.
const RESTARTED: &str = "was restarted";
const PROMOTED: &str = "was a replica, and has taken its master's place";

/// The state of Redis's servers, beside what was known of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incarnation {
    /// Changes whenever data may be lost.
    pub(crate) id: String,
    /// Data may be lost since the known mark was left.
    pub(crate) is_other: bool,
    /// A sentence for each master of a Cluster that may have lost data: its address, and what happened. Empty on a lone
    /// server, and if the mark of all is gone.
    pub(crate) losses: Vec<String>,
    /// The servers of a Cluster; `None` for a lone server.
    servers: Option<Servers>,
}

/// The servers of a Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Servers {
    /// The masters that answer.
    present: Vec<Present>,
    /// The masters that do not answer, as the known mark lists them.
    away: Vec<Master>,
    /// The ids of replicas.
    replicas: BTreeSet<String>,
    /// The slots of the known masters' own marks.
    marked: BTreeSet<u16>,
    /// The slots of the own marks that are gone, of masters that do not answer.
    unmarked: BTreeSet<u16>,
}

/// A master that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Present {
    address: Address,
    now: Master,
    /// The master as the known mark lists it.
    before: Option<Master>,
    /// Why it may have lost data.
    loss: Option<&'static str>,
}

/// A master of a Cluster, as the mark lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Master {
    id: String,
    run: String,
    /// The slot of its own mark.
    slot: u16,
}

/// The mark of a Cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mark {
    id: String,
    masters: Vec<Master>,
    replicas: BTreeSet<String>,
}

impl Master {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (id, run, slot) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { id: id.to_owned(), run: run.to_owned(), slot: slot.parse().ok()? })
    }
}

impl Mark {
    /// Reads a mark. That of a lone server lists no master.
    fn read(text: &str) -> Self {
        let mut words = text.split(' ').filter(|word| !word.is_empty());
        let id = words.next().unwrap_or_default().to_owned();
        let (masters, replicas): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains('/'));
        let masters = masters.into_iter().filter_map(Master::read).collect();
        Self { id, masters, replicas: replicas.into_iter().map(str::to_owned).collect() }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut masters: Vec<&Master> = self.masters.iter().collect();
        masters.sort_by_key(|master| &master.id);
        f.write_str(&self.id)?;
        masters.into_iter().try_for_each(|Master { id, run, slot }| write!(f, " {id}/{run}/{slot}"))?;
        self.replicas.iter().try_for_each(|id| write!(f, " {id}"))
    }
}

impl Servers {
    /// Returns the id of a loss: all workers that find it find the same.
    fn id_after(&self, known: &str) -> String {
        let masters = self.present.iter().map(|present| &present.now).chain(&self.away);
        let mut runs: Vec<String> = masters.map(|master| format!("{}/{}", master.id, master.run)).collect();
        runs.sort();
        digest(&format!("{known} {}", runs.join(" ")))
    }
}

/// Returns what happened to each master that may have lost data. `marks` are the own marks of the known masters.
fn losses(known: &Mark, present: &[Present], marks: &[RedisResult<String>]) -> Vec<String> {
    let unmarked = known.masters.iter().zip(marks).filter(|(_, mark)| mark.as_ref().is_ok_and(String::is_empty));
    let unmarked: BTreeSet<&str> = unmarked.map(|(master, _)| &*master.id).collect();
    let of_present = present.iter().filter_map(|Present { address, now, loss, .. }| {
        let loss = match (*loss, unmarked.contains(&*now.id)) {
            (Some(RESTARTED), true) => "was restarted without its data",
            (None, true) => "was flushed, or lost slots without their keys",
            (loss, _) => loss?,
        };
        Some(format!("the master {address} {loss}"))
    });
    let is_present = |id: &str| present.iter().any(|present| present.now.id == id);
    let of_others =
        unmarked.iter().filter(|id| !is_present(id)).map(|id| format!("data of the former master {id} are gone"));
    of_present.chain(of_others).collect()
}

fn digest(text: &str) -> String {
    format!("{:032x}", twox_hash::XxHash3_128::oneshot(text.as_bytes()))
}

impl Incarnation {
    /// Returns the incarnation after a loss that was first found at this time. On a Cluster, its id differs from that
    /// of each other loss with the same runs, such as a flush.
    pub(crate) fn found_at(self, found: RedisTime) -> Self {
        let id = if self.is_of_cluster() { digest(&format!("{} {found}", self.id)) } else { self.id };
        Self { id, ..self }
    }

    /// Returns `true` for a Cluster.
    pub(crate) fn is_of_cluster(&self) -> bool {
        self.servers.is_some()
    }

    /// Returns the mark to leave.
    pub(crate) fn mark(&self) -> String {
        self.mark_without(&BTreeSet::new())
    }

    /// Returns the mark to leave if the own marks of the masters of these ids could not be left: it lists them as
    /// before.
    fn mark_without(&self, unmarked: &BTreeSet<&str>) -> String {
        let Some(servers) = &self.servers else { return self.id.clone() };
        let present = servers.present.iter().filter_map(|Present { now, before, .. }| {
            if unmarked.contains(&*now.id) { before.clone() } else { Some(now.clone()) }
        });
        let masters = present.chain(servers.away.iter().cloned()).collect();
        Mark { id: self.id.clone(), masters, replicas: servers.replicas.clone() }.to_string()
    }

    /// Leaves the own marks of masters, where they are others than before. Returns the mark of all that is to be left
    /// then.
    ///
    /// # Errors
    /// Redis's after a loss: if a mark of it could not be left, the next look would find the same loss as a new one.
    /// Otherwise, a master whose mark could not be left is listed as before.
    pub(crate) async fn leave_own_marks(&self, redis: &Connection, keys: &Keys) -> RedisResult<String> {
        let leave = async |slot: u16| {
            let set = redis::cmd("SET").arg(keys.marker_at(slot)).arg(&self.id).to_owned();
            set.exec_async(&mut redis.clone()).await
        };
        let present = self.servers.iter().flat_map(|servers| &servers.present);
        if self.is_other {
            let unmarked = self.servers.iter().flat_map(|servers| &servers.unmarked);
            try_join_all(present.map(|present| present.now.slot).chain(unmarked.copied()).map(leave)).await?;
            return Ok(self.mark());
        }
        let moved =
            present.filter(|Present { now, before, .. }| before.as_ref().is_none_or(|before| before.slot != now.slot));
        let leaving = moved.map(async |Present { now, .. }| leave(now.slot).await.is_err().then_some(&*now.id));
        Ok(self.mark_without(&join_all(leaving).await.into_iter().flatten().collect()))
    }

    /// Removes the own marks that the mark of all does not list any more. One that cannot be removed does no harm.
    pub(crate) async fn remove_own_marks(&self, mark: &str, redis: &Connection, keys: &Keys) {
        let listed: BTreeSet<u16> = Mark::read(mark).masters.iter().map(|master| master.slot).collect();
        let marked = self.servers.iter().flat_map(|servers| &servers.marked);
        let removing = marked.filter(|slot| !listed.contains(slot)).map(async |slot| {
            let removed = redis::cmd("DEL").arg(keys.marker_at(*slot)).to_owned();
            removed.exec_async(&mut redis.clone()).await
        });
        join_all(removing).await;
    }
}

impl Connection {
    /// Returns the state of Redis's servers. `known` is the mark that was left, empty if it is gone.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn incarnation(&mut self, known: &str, keys: &Keys) -> RedisResult<Incarnation> {
        if let Some(slots) = self.slots() {
            return Box::pin(self.incarnation_of_cluster(Mark::read(known), &slots, keys)).await;
        }
        let run = self.run(Some(known).filter(|known| !known.is_empty())).await?;
        let is_other = run != known;
        Ok(Incarnation { id: run, is_other, losses: Vec::new(), servers: None })
    }

    async fn incarnation_of_cluster(&self, known: Mark, slots: &Topology, keys: &Keys) -> RedisResult<Incarnation> {
        let asking = slots.masters().iter().map(|address| Box::pin(self.present_at(address, &known, slots)));
        let present: Vec<Present> = join_all(asking).await.into_iter().flatten().collect();
        if present.is_empty() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        let marks = self.own_marks(&known, slots, keys).await;
        let losses = if known.masters.is_empty() { Vec::new() } else { losses(&known, &present, &marks) };
        let is_other = known.masters.is_empty() || !losses.is_empty();
        let is_present = |id: &String| present.iter().any(|present| present.now.id == *id);
        let master_ids = slots.master_ids();
        let is_silent = |id: &String| master_ids.contains(&**id) && !is_present(id);
        let is_away = |(master, mark): &(&Master, RedisResult<String>)| {
            is_silent(&master.id) || mark.is_err() && !is_present(&master.id)
        };
        let silent: Vec<_> = known.masters.iter().zip(marks).filter(is_away).collect();
        let unmarked = silent.iter().filter(|(_, mark)| mark.as_ref().is_ok_and(String::is_empty));
        let unmarked = unmarked.map(|(master, _)| master.slot).collect();
        let away = silent.into_iter().map(|(master, _)| master.clone()).collect();
        // A promoted one stays among them until it answers.
        let promoted = known.replicas.iter().filter(|id| is_silent(id)).cloned();
        let replicas = slots.replica_ids().into_iter().chain(promoted).collect();
        let marked = known.masters.iter().map(|master| master.slot).collect();
        let servers = Servers { present, away, replicas, marked, unmarked };
        let id = if is_other { servers.id_after(&known.id) } else { known.id };
        Ok(Incarnation { id, is_other, losses, servers: Some(servers) })
    }

    /// Returns the master at this address; `None` if it does not answer: what happens to it shows when it does.
    async fn present_at(&self, address: &Address, known: &Mark, slots: &Topology) -> Option<Present> {
        let (mut master, id) = (self.answering(address)?, slots.id_of(address)?);
        let before = known.masters.iter().find(|master| master.id == id).cloned();
        let run = master.run(before.as_ref().map(|master| &*master.run)).await.ok()?;
        let loss = match &before {
            Some(before) => (before.run != run).then_some(RESTARTED),
            None if known.replicas.contains(id) => Some(PROMOTED),
            None => match master.info(&["replication"]).await.ok()? {
                Some(info) => info.promoted_from().map(|_| PROMOTED),
                // Without a right to `INFO`, it may have been promoted.
                None => Some("was unknown, and may have been a replica"),
            },
        };
        let kept = before.as_ref().map(|master| master.slot).filter(|slot| slots.owner(*slot) == Some(address));
        let slot = kept.or_else(|| slots.last_of(address))?;
        let now = Master { id: id.to_owned(), run, slot };
        Some(Present { address: address.clone(), now, before, loss })
    }

    /// Returns the own marks of the known masters, in order, whoever serves their slots by now.
    async fn own_marks(&self, known: &Mark, slots: &Topology, keys: &Keys) -> Vec<RedisResult<String>> {
        let reading = known.masters.iter().map(async |master| {
            if slots.owner(master.slot).and_then(|owner| self.answering(owner)).is_none() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            self.own_mark(master.slot, keys).await
        });
        join_all(reading).await
    }

    /// Returns the own mark at this slot, empty if there is none.
    async fn own_mark(&self, slot: u16, keys: &Keys) -> RedisResult<String> {
        // Not `GET`, which the sampler takes for a read by an API.
        let get = redis::cmd("GETRANGE").arg(keys.marker_at(slot)).arg(0).arg(-1).to_owned();
        get.query_async(&mut self.clone()).await
    }

    /// Returns the server's run: a value that changes with each restart and failover. It is the server's
    /// `run_id`, or, without a right to `INFO`, the digest of a script that a restarted server has lost. `known` is the
    /// stored value; a stored script digest is valid for every client. Without one, the connection and its clones use
    /// the script that they loaded before.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    async fn run(&mut self, known: Option<&str>) -> RedisResult<String> {
        if let Some(digest) = known.and_then(|known| known.strip_prefix(SCRIPT))
            && self.has_script(digest).await?
        {
            return Ok(format!("{SCRIPT}{digest}"));
        }
        if let Some(info) = self.info(&["server"]).await? {
            return Ok(info.run_id().unwrap_or_default().to_owned());
        }
        let connection = self.clone();
        let loaded = || connection.loaded().lock().unwrap_or_else(PoisonError::into_inner);
        let before = loaded().clone();
        if let Some(digest) = before
            && self.has_script(&digest).await?
        {
            return Ok(format!("{SCRIPT}{digest}"));
        }
        let script = format!("return '{:032x}'", rand::random::<u128>());
        let digest: String = redis::cmd("SCRIPT").arg("LOAD").arg(script).query_async(self).await?;
        *loaded() = Some(digest.clone());
        Ok(format!("{SCRIPT}{digest}"))
    }

    async fn has_script(&mut self, digest: &str) -> RedisResult<bool> {
        let there: Vec<bool> = redis::cmd("SCRIPT").arg("EXISTS").arg(digest).query_async(self).await?;
        Ok(there == [true])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::server::Server;

    /// Covers a value that could not be stored and a value that another client overwrites.
    #[tokio::test]
    async fn a_life_that_no_script_is_noted_for_takes_one_script() {
        let server = Server::start().await;
        let mut admin = server.connect().await;
        let () = redis::cmd("ACL").arg(&["SETUSER", "default", "-info"]).exec_async(&mut admin).await.unwrap();
        let mut connection = server.connect().await;
        let life = connection.run(None).await.unwrap();
        assert!(life.starts_with(SCRIPT), "{life}");
        for known in [None, Some(""), Some("a run_id"), Some("script:of another life"), Some(life.as_str())] {
            assert_eq!(connection.clone().run(known).await.unwrap(), life, "{known:?}");
        }
        // A server that forgot it was started anew.
        let () = redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut admin).await.unwrap();
        assert_ne!(connection.run(Some(&life)).await.unwrap(), life);
    }
}
