//! The runs of Redis's servers, and the marks left on them: they tell whether Redis still holds what it acknowledged.
//!
//! A lone server has a mark with its run. On a Cluster, the mark lists all masters, each as `id/run/slot`, and each
//! master has a mark of its own at a slot that it serves. Data may be lost if a known master has another run (it was
//! restarted), if an unknown one was a replica (it was promoted), or if a master's own mark is gone although its slot
//! has not moved (it was flushed). A new master that slots move to has lost nothing.

use std::io;
use std::sync::PoisonError;

use redis::RedisResult;

use super::Connection;
use super::refused::is_refusal;

/// The prefix of a run that is the digest of a script.
const SCRIPT: &str = "script:";

/// The state of Redis's servers, beside what was known of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incarnation {
    /// Changes whenever data may be lost.
    pub(crate) id: String,
    /// The mark to leave.
    pub(crate) mark: String,
    /// The marks to leave on single masters.
    pub(crate) own_marks: Vec<String>,
    /// Data may be lost since the known mark was left.
    pub(crate) is_other: bool,
    /// What happened to each master of a Cluster that may have lost data, as a sentence with its address. Empty on a
    /// lone server, and if the mark of all is gone.
    pub(crate) losses: Vec<String>,
}

/// A master of a Cluster, as the mark lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Master {
    id: String,
    run: String,
    /// The slot of its own mark.
    slot: u16,
}

impl Master {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (id, run, slot) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { id: id.to_owned(), run: run.to_owned(), slot: slot.parse().ok()? })
    }
}

impl Connection {
    /// Returns the state of Redis's servers. `known` is the mark that was left, empty if it is gone; `own_mark` names
    /// the mark of a master at a slot.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub(crate) async fn incarnation(
        &mut self,
        known: &str,
        own_mark: impl Fn(u16) -> String,
    ) -> RedisResult<Incarnation> {
        let Some(slots) = self.slots() else {
            let run = self.run(Some(known).filter(|known| !known.is_empty())).await?;
            let is_other = run != known;
            let (id, own_marks, losses) = (run.clone(), Vec::new(), Vec::new());
            return Ok(Incarnation { id, mark: run, own_marks, is_other, losses });
        };
        let (id, masters) = known.split_once(' ').unwrap_or_default();
        // Tells this loss from one before it with the same runs: the mark, or what is left of it.
        let mut before_it = id.to_owned();
        let known: Vec<Master> = masters.split(' ').filter_map(Master::read).collect();
        let (mut present, mut silent, mut losses) = (Vec::new(), 0, Vec::new());
        for address in slots.masters() {
            let Some(mut master) = self.master_at(address) else { continue };
            let own: RedisResult<String> = redis::cmd("CLUSTER").arg("MYID").query_async(&mut master).await;
            let own = match own {
                Ok(own) => own,
                // Its address is as good, until it is restarted elsewhere.
                Err(e) if is_refusal(&e) => address.to_string(),
                // What happens to it shows when it answers again.
                Err(_) => {
                    silent += 1;
                    continue;
                }
            };
            let before = known.iter().find(|master| master.id == own);
            let run = master.run(before.map(|master| master.run.as_str())).await?;
            let kept = before.filter(|master| slots.owner(master.slot) == Some(address));
            let has_mark = match kept {
                Some(kept) => redis::cmd("EXISTS").arg(own_mark(kept.slot)).query_async(self).await?,
                None => true,
            };
            let loss = master.loss(before.map(|before| before.run == run), has_mark).await?;
            losses.extend(loss.map(|loss| format!("the master {address} {loss}")));
            let slot = kept.map(|master| master.slot).or_else(|| slots.first_of(address)).unwrap_or_default();
            if id.is_empty() {
                let left: RedisResult<String> =
                    redis::cmd("GETRANGE").arg(own_mark(slot)).arg(0).arg(-1).query_async(self).await;
                before_it += &left.unwrap_or_default();
            }
            present.push(Master { id: own, run, slot });
        }
        if silent > 0 {
            // Nothing is forgotten of those that do not answer: perhaps they are only away.
            if present.is_empty() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            let away = known.iter().filter(|master| present.iter().all(|other| other.id != master.id));
            let away: Vec<Master> = away.cloned().collect();
            present.extend(away);
        }
        present.sort_by(|one, other| one.id.cmp(&other.id));
        let runs: Vec<String> = present.iter().map(|master| format!("{}/{}", master.id, master.run)).collect();
        let is_other = known.is_empty() || !losses.is_empty();
        if known.is_empty() {
            losses.clear();
        }
        // All workers find the same.
        let id = if is_other {
            let loss = format!("{before_it} {}", runs.join(" "));
            format!("{:032x}", twox_hash::XxHash3_128::oneshot(loss.as_bytes()))
        } else {
            id.to_owned()
        };
        let masters = present.iter().map(|master| format!("{}/{}/{}", master.id, master.run, master.slot));
        let mark = format!("{id} {}", masters.collect::<Vec<_>>().join(" "));
        let own_marks = present.iter().map(|master| own_mark(master.slot)).collect();
        Ok(Incarnation { id, mark, own_marks, is_other, losses })
    }

    /// Returns why a master of a Cluster may have lost data. `is_same_run` is `None` if the master was unknown.
    async fn loss(&mut self, is_same_run: Option<bool>, has_mark: bool) -> RedisResult<Option<&'static str>> {
        Ok(match (is_same_run, has_mark) {
            (Some(true), true) => None,
            (Some(true), false) => Some("was flushed"),
            (Some(false), true) => Some("was restarted"),
            (Some(false), false) => Some("was restarted without its data"),
            (None, _) => match self.info(&["replication"]).await? {
                Some(info) => info.promoted_from().map(|_| "was a replica, and has taken its master's place"),
                // Without a right to `INFO`, it may have been promoted.
                None => Some("was unknown, and may have been a replica"),
            },
        })
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
