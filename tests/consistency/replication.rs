//! The knowledge of what replicas have: no failover takes it back.
//!
//! A master acknowledges what its replica does not have yet, and a failover loses that. So a run expects only what
//! replicas had while the masters stayed the same.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::PATIENCE;
use crate::support::TestRedis;

/// The time between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// The time that a server has for its answer. A dead one gives none.
const ANSWER: Duration = Duration::from_secs(1);

/// The masters of a run and their replicas. A lone server has none, and keeps all.
pub(super) struct Replication {
    nodes: Vec<(u16, ConnectionManager)>,
    masters: usize,
    /// The histories of the present masters. One that takes another's place begins a new one.
    histories: RefCell<BTreeSet<String>>,
    kept: watch::Sender<Kept>,
}

/// Replicas have what was written until then.
#[derive(Clone, Copy, Debug)]
struct Kept {
    era: u64,
    until: Instant,
}

/// The state of a server, as it tells it.
enum Role {
    Master { history: String, offset: u64 },
    Replica { of: u16, offset: u64 },
}

impl Replication {
    /// Of these servers, so many of which are masters.
    pub(super) fn of<'a>(nodes: impl IntoIterator<Item = &'a TestRedis>, masters: usize) -> Self {
        let again = || ConnectionManagerConfig::new().set_number_of_retries(usize::MAX).set_max_delay(LOOK);
        let manager = |node: &TestRedis| ConnectionManager::new_lazy_with_config(node.client(), again()).unwrap();
        let nodes = nodes.into_iter().map(|node| (node.port(), manager(node))).collect();
        let kept = watch::Sender::new(Kept { era: 0, until: Instant::now() });
        Self { nodes, masters, histories: RefCell::default(), kept }
    }

    /// Returns the number of the present era, which ends when another master takes the place of one.
    pub(super) fn era(&self) -> u64 {
        self.kept.borrow().era
    }

    /// Waits until replicas have all that was written up to now. Returns `false` if this era ended before.
    pub(super) async fn have(&self, era: u64) -> bool {
        if self.masters == 0 {
            return true;
        }
        let (mut kept, now) = (self.kept.subscribe(), Instant::now());
        let having = kept.wait_for(|kept| kept.era != era || kept.until >= now);
        let kept = timeout(PATIENCE, having).await.expect("masters have replicas again").unwrap();
        kept.era == era
    }

    /// Looks again and again.
    pub(super) async fn run(&self, end: &CancellationToken) {
        while self.masters > 0 && !end.is_cancelled() {
            self.look().await;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) {
        let until = Instant::now();
        let (mut histories, mut offsets) = (BTreeSet::new(), BTreeMap::new());
        for (port, role) in self.roles().await {
            if let Role::Master { history, offset } = role {
                histories.insert(history);
                offsets.insert(port, offset);
            }
        }
        if offsets.len() != self.masters {
            return;
        }
        if *self.histories.borrow() != histories {
            self.histories.replace(histories);
            return self.kept.send_modify(|kept| kept.era += 1);
        }
        while until.elapsed() < ANSWER {
            let mut lagging = offsets.clone();
            for (_, role) in self.roles().await {
                if let Role::Replica { of, offset } = role {
                    lagging.retain(|master, wanted| *master != of || *wanted > offset);
                }
            }
            if lagging.is_empty() {
                return self.kept.send_modify(|kept| kept.until = until);
            }
        }
    }

    /// Returns what the servers that answer say, with their ports.
    async fn roles(&self) -> Vec<(u16, Role)> {
        let asking = self.nodes.iter().map(async |(port, node)| {
            let (mut node, mut ask) = (node.clone(), redis::cmd("INFO"));
            let text: String = timeout(ANSWER, ask.arg("replication").query_async(&mut node)).await.ok()?.ok()?;
            Some((*port, Role::read(&text)?))
        });
        join_all(asking).await.into_iter().flatten().collect()
    }
}

impl Role {
    /// Reads the section `replication` of `INFO`; `None` for a replica that has lost its master.
    fn read(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        match (field("role")?, field("master_link_status")) {
            ("master", _) => Some(Self::Master {
                history: field("master_replid")?.to_owned(),
                offset: field("master_repl_offset")?.parse().ok()?,
            }),
            (_, Some("up")) => Some(Self::Replica {
                of: field("master_port")?.parse().ok()?,
                offset: field("slave_repl_offset")?.parse().ok()?,
            }),
            _ => None,
        }
    }
}
