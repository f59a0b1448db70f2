//! Sends commands to the masters of a Cluster: each to the one that serves its key.
//!
//! A pipeline is split by masters, and its answers are put together. A slot that moves answers with a redirection,
//! which is followed, or with TRYAGAIN, which is repeated. A command that may have been executed is not repeated.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::{Cmd, Pipeline, RedisError, RedisResult, Value};

use super::Connection;
use crate::redis::cluster::routing::{Route, is_of_connection, split, words};
use crate::redis::cluster::topology::Topology;
use crate::redis::cluster::{Cluster, address as address_of};
use crate::redis::endpoint::Address;
use crate::redis::named::error_of;

/// The redirections of one command that are followed.
const REDIRECTIONS: usize = 16;
/// The time after a command's timeout until which the router waits, so that a master's own timeout comes first.
const LATE: Duration = Duration::from_millis(100);
/// The first and the longest delay before a command is repeated because its slot moves.
const AGAIN: Duration = Duration::from_millis(5);
const AGAIN_LONGEST: Duration = Duration::from_millis(100);

/// The connections to the masters of a Cluster. Cheap to clone; clones share them.
#[derive(Clone)]
pub(in crate::redis) struct Router {
    cluster: Arc<Cluster>,
    nodes: Arc<Mutex<HashMap<Address, Connection>>>,
    /// The scripts that masters have, by address and digest.
    loaded: Arc<Mutex<HashSet<(Address, String)>>>,
}

/// The next step after an answer that a server gave because of the slot.
enum Next {
    Moved(u16, String),
    Ask(String),
    Again,
    NoScript,
}

impl Next {
    fn of(error: &RedisError) -> Option<Self> {
        match (error.code()?, error.redirect_node()) {
            ("MOVED", Some((to, slot))) => Some(Self::Moved(slot, to.to_owned())),
            ("ASK", Some((to, _))) => Some(Self::Ask(to.to_owned())),
            // Nothing of the transaction was executed: one of its slots moves, or has moved.
            ("TRYAGAIN" | "EXECABORT", _) => Some(Self::Again),
            ("NOSCRIPT", _) => Some(Self::NoScript),
            _ => None,
        }
    }

    fn in_answer(answer: &Value) -> Option<Self> {
        match answer {
            Value::ServerError(error) => Self::of(&error.clone().into()),
            _ => None,
        }
    }
}

/// One command, or a transaction, for one master.
trait Sent {
    type Answer;

    /// Sends it.
    async fn send(&self, node: &Connection) -> RedisResult<Self::Answer>;
    /// Sends it after `ASKING`.
    async fn send_asking(&self, node: &Connection) -> RedisResult<Self::Answer>;
}

impl Sent for Cmd {
    type Answer = Value;

    async fn send(&self, node: &Connection) -> RedisResult<Value> {
        match node.send(self).await? {
            Value::ServerError(error) => Err(error.into()),
            answer => Ok(answer),
        }
    }

    async fn send_asking(&self, node: &Connection) -> RedisResult<Value> {
        let mut both = redis::pipe();
        both.cmd("ASKING").add_command(self.clone());
        match node.send_all(&both, 0, 2).await?.pop() {
            Some(Value::ServerError(error)) => Err(error.into()),
            answer => Ok(answer.unwrap_or(Value::Nil)),
        }
    }
}

/// A transaction: all of its keys are in one slot.
struct Transaction<'a> {
    pipeline: &'a Pipeline,
    offset: usize,
    count: usize,
}

impl Sent for Transaction<'_> {
    type Answer = Vec<Value>;

    async fn send(&self, node: &Connection) -> RedisResult<Vec<Value>> {
        unredirected(node.send_all(self.pipeline, self.offset, self.count).await?)
    }

    async fn send_asking(&self, node: &Connection) -> RedisResult<Vec<Value>> {
        // In one pipeline, so that no other command comes between them.
        let mut asking = redis::pipe();
        asking.cmd("ASKING");
        if self.pipeline.is_transaction() {
            asking.cmd("MULTI");
        }
        self.pipeline.cmd_iter().for_each(|cmd| _ = asking.add_command(cmd.clone()));
        if self.pipeline.is_transaction() {
            asking.cmd("EXEC");
        }
        let mut answers = unredirected(node.send_all(&asking, 0, asking.len()).await?)?;
        // The answers to a transaction are that of EXEC.
        Ok(answers.split_off(if self.pipeline.is_transaction() { answers.len() - 1 } else { 1 }))
    }
}

/// Returns the answers, unless one of them is a redirection: it aborts them all.
fn unredirected(answers: Vec<Value>) -> RedisResult<Vec<Value>> {
    match answers.iter().find(|answer| Next::in_answer(answer).is_some()) {
        Some(Value::ServerError(error)) => Err(error.clone().into()),
        _ => Ok(answers),
    }
}

impl Router {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, nodes: Arc::default(), loaded: Arc::default() }
    }

    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Returns the connection to a master, with the timeout of `all`.
    pub(super) fn node(&self, address: &Address, all: &Connection) -> Connection {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if !nodes.contains_key(address)
            && let Some(topology) = self.cluster.known()
        {
            // Others may have taken the places of servers that are no masters any more.
            nodes.retain(|address, _| topology.has_master(address));
        }
        let node = nodes.entry(address.clone()).or_insert_with(|| all.at_node(&self.cluster, address));
        node.clone().telling(all.wrong_types()).with_timeout(all.timeout())
    }

    /// Returns the masters.
    pub(super) async fn topology(&self) -> Arc<Topology> {
        self.cluster.topology().await.0
    }

    /// Returns the master that answers what concerns no key.
    async fn any(&self) -> RedisResult<Address> {
        self.cluster.any(&*self.topology().await).ok_or_else(|| unserved(0))
    }

    /// Sends a command.
    pub(super) async fn send(&self, cmd: &Cmd, all: &Connection) -> RedisResult<Value> {
        bounded(all, async {
            match Route::of(cmd) {
                Route::Slot(slot) => self.to_slot(slot, cmd, all).await,
                Route::Split => self.split(cmd, all).await,
                Route::Any => self.to_any(cmd, all).await,
            }
        })
        .await
    }

    /// Sends a command without a key.
    async fn to_any(&self, cmd: &Cmd, all: &Connection) -> RedisResult<Value> {
        let name = words(cmd).next().unwrap_or_default().to_ascii_uppercase();
        if is_load(cmd) {
            let text = words(cmd).nth(2).unwrap_or_default();
            return Ok(Value::BulkString(self.cluster.scripts().load(text).into_bytes()));
        }
        if matches!(name.as_slice(), b"DBSIZE" | b"PUBSUB") {
            return self.to_each(cmd, all).await;
        }
        let address = self.any().await?;
        let answer = cmd.send(&self.node(&address, all)).await?;
        if name == b"TIME" { self.on_fleets_clock(answer, &address).await } else { Ok(answer) }
    }

    /// Sends a command to all masters, and adds up what they answer.
    async fn to_each(&self, cmd: &Cmd, all: &Connection) -> RedisResult<Value> {
        let topology = self.topology().await;
        let nodes: Vec<Connection> = topology.masters().iter().map(|address| self.node(address, all)).collect();
        let mut sum: Option<Value> = None;
        for answer in join_all(nodes.iter().map(|node| cmd.send(node))).await {
            let answer = answer?;
            sum = Some(match sum {
                None => answer,
                Some(sum) => added(sum, answer),
            });
        }
        sum.ok_or_else(|| unserved(0))
    }

    /// Returns a master's time on the fleet's clock: the latest that it may be there. What began before an
    /// invalidation of this time is older for each worker.
    async fn on_fleets_clock(&self, time: Value, address: &Address) -> RedisResult<Value> {
        let (seconds, micros): (i64, i64) = redis::from_redis_value(time)?;
        let time = seconds * 1_000_000 + micros - self.cluster.ahead(address).await + self.cluster.doubt();
        let text = |n: i64| Value::BulkString(n.to_string().into_bytes());
        Ok(Value::Array(vec![text(time.div_euclid(1_000_000)), text(time.rem_euclid(1_000_000))]))
    }

    /// Sends what concerns one slot to the master that serves it.
    async fn to_slot<S: Sent>(&self, slot: u16, sent: &S, all: &Connection) -> RedisResult<S::Answer>
    where
        Self: Clocks<S>,
    {
        let end = Instant::now() + all.timeout();
        let (mut asked, mut delay, mut redirections) = (None, AGAIN, 0);
        loop {
            let asking: Option<Address> = asked.take();
            let address = match &asking {
                Some(address) => address.clone(),
                None => self.topology().await.owner(slot).cloned().ok_or_else(|| unserved(slot))?,
            };
            let node = self.node(&address, all);
            let answer = self.clocked(sent, &address, &node, asking.is_some()).await;
            let Err(error) = &answer else { return answer };
            let Some(next) = Next::of(error).filter(|_| Instant::now() < end && redirections < REDIRECTIONS) else {
                return answer;
            };
            match next {
                Next::Moved(slot, to) => {
                    redirections += 1;
                    all.home(|| self.cluster.moved(slot, &to));
                }
                Next::Ask(to) => {
                    asked = address_of(&to);
                    match &asked {
                        Some(to) => all.home(|| self.cluster.named(to)),
                        None => redirections += 1,
                    }
                }
                Next::Again => {
                    all.home(|| self.cluster.ask_soon());
                    tokio::time::sleep(delay).await;
                    delay = (2 * delay).min(AGAIN_LONGEST);
                }
                Next::NoScript => return answer,
            }
        }
    }

    /// Sends a command whose keys are in several slots.
    async fn split(&self, cmd: &Cmd, all: &Connection) -> RedisResult<Value> {
        let parts = split(cmd);
        let answers = join_all(parts.iter().map(|(slot, _, part)| self.to_slot(*slot, part, all))).await;
        let mut values = BTreeMap::new();
        let mut count = None;
        for ((_, places, _), answer) in parts.iter().zip(answers) {
            match answer? {
                Value::Array(found) => values.extend(places.iter().copied().zip(found)),
                Value::Int(n) => count = Some(count.unwrap_or(0) + n),
                _ => {}
            }
        }
        Ok(count.map_or_else(|| Value::Array(values.into_values().collect()), Value::Int))
    }

    /// Sends a pipeline.
    pub(super) async fn send_all(
        &self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
        all: &Connection,
    ) -> RedisResult<Vec<Value>> {
        bounded(all, Box::pin(self.distribute(pipeline, offset, count, all))).await
    }

    async fn distribute(
        &self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
        all: &Connection,
    ) -> RedisResult<Vec<Value>> {
        let is_multi = |cmd: &Cmd| words(cmd).next().is_some_and(|name| name.eq_ignore_ascii_case(b"MULTI"));
        if pipeline.is_transaction() || pipeline.cmd_iter().any(is_multi) {
            let routes = pipeline.cmd_iter().map(Route::of);
            let slot = routes.filter_map(|route| if let Route::Slot(slot) = route { Some(slot) } else { None }).next();
            return self.to_slot(slot.unwrap_or(0), &Transaction { pipeline, offset, count }, all).await;
        }
        let topology = self.topology().await;
        let cmds: Vec<&Cmd> = pipeline.cmd_iter().collect();
        let mut answers: Vec<Option<Value>> = vec![None; cmds.len()];
        let mut by_node: BTreeMap<&Address, Vec<usize>> = BTreeMap::new();
        // Commands that concern no single master.
        let mut single = Vec::new();
        for (n, cmd) in cmds.iter().enumerate() {
            match Route::of(cmd) {
                Route::Slot(slot) => match topology.owner(slot) {
                    Some(owner) => by_node.entry(owner).or_default().push(n),
                    None => single.push(n),
                },
                Route::Any if is_of_connection(cmd) => {}
                Route::Any if is_load(cmd) => answers[n] = Some(self.to_any(cmd, all).await?),
                Route::Any | Route::Split => single.push(n),
            }
        }
        let of_connection: Vec<usize> = (0..cmds.len()).filter(|n| is_of_connection(cmds[*n])).collect();
        for places in by_node.values_mut() {
            places.extend(&of_connection);
            places.sort_unstable();
        }
        let parts = by_node.iter().map(|(address, places)| self.to_node(address, places, &cmds, all));
        let mut failed = None;
        for ((_, places), part) in by_node.iter().zip(join_all(parts).await) {
            match part {
                Ok(part) => places.iter().zip(part).for_each(|(n, answer)| answers[*n] = Some(answer)),
                Err(error) if by_node.len() == 1 && single.is_empty() => return Err(error),
                Err(error) => {
                    places.iter().for_each(|n| _ = answers[*n].get_or_insert_with(|| unanswered(&error)));
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed.filter(|_| {
            // Nobody answered: then it is this error, with its kind.
            single.is_empty() && answers.iter().flatten().all(is_unanswered)
        }) {
            return Err(error);
        }
        for (n, answer) in answers.iter_mut().enumerate() {
            if answer.as_ref().is_none_or(|answer| Next::in_answer(answer).is_some()) {
                *answer = Some(match self.send(cmds[n], all).await {
                    Ok(answer) => answer,
                    Err(error) => told(&error),
                });
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Sends the part of a pipeline that concerns one master.
    async fn to_node(
        &self,
        address: &Address,
        places: &[usize],
        cmds: &[&Cmd],
        all: &Connection,
    ) -> RedisResult<Vec<Value>> {
        let mut part = redis::pipe();
        let mut first = Vec::new();
        for n in places {
            let (cmd, script) = self.call(cmds[*n], address, false).await;
            first.extend(script);
            part.add_command(cmd);
        }
        let answers = self.node(address, all).send_all(&part, 0, places.len()).await?;
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).extend(first);
        for (n, answer) in places.iter().zip(&answers) {
            if matches!(Next::in_answer(answer), Some(Next::NoScript)) {
                self.forget(cmds[*n], address);
            }
        }
        Ok(answers)
    }

    /// Returns what is sent to a master for `cmd`: a script reads the fleet's clock there. With it comes what the
    /// master knows once it has answered.
    async fn call(&self, cmd: &Cmd, address: &Address, anew: bool) -> (Cmd, Option<(Address, String)>) {
        let Some(script) = self.cluster.scripts().called_by(cmd) else { return (cmd.clone(), None) };
        let ahead = self.cluster.ahead(address).await;
        let known = (address.clone(), script.digest().to_owned());
        let is_known = !anew && self.loaded.lock().unwrap_or_else(PoisonError::into_inner).contains(&known);
        (script.call(cmd, ahead, is_known), (!is_known).then_some(known))
    }

    /// Notes that a master does not have a script any more.
    fn forget(&self, cmd: &Cmd, address: &Address) {
        if let Some(script) = self.cluster.scripts().called_by(cmd) {
            let known = (address.clone(), script.digest().to_owned());
            self.loaded.lock().unwrap_or_else(PoisonError::into_inner).remove(&known);
        }
    }
}

/// Sends with the fleet's clock.
trait Clocks<S: Sent> {
    async fn clocked(&self, sent: &S, address: &Address, node: &Connection, asking: bool) -> RedisResult<S::Answer>;
}

impl Clocks<Cmd> for Router {
    async fn clocked(&self, sent: &Cmd, address: &Address, node: &Connection, asking: bool) -> RedisResult<Value> {
        for anew in [false, true] {
            let (cmd, script) = self.call(sent, address, anew).await;
            let answer = if asking { cmd.send_asking(node).await } else { cmd.send(node).await };
            let has_no_script = answer.as_ref().is_err_and(|e| matches!(Next::of(e), Some(Next::NoScript)));
            if answer.is_ok() {
                self.loaded.lock().unwrap_or_else(PoisonError::into_inner).extend(script);
            }
            if !has_no_script || anew {
                return answer;
            }
        }
        unreachable!("the second time, the answer is returned")
    }
}

impl Clocks<Transaction<'_>> for Router {
    async fn clocked(
        &self,
        sent: &Transaction<'_>,
        _: &Address,
        node: &Connection,
        asking: bool,
    ) -> RedisResult<Vec<Value>> {
        if asking { sent.send_asking(node).await } else { sent.send(node).await }
    }
}

/// Waits for an answer, and what comes before it: the first look at the masters, redirections, and the answer of a
/// master, which has the timeout itself.
async fn bounded<T>(all: &Connection, answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match tokio::time::timeout(all.timeout() + LATE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(all.timed_out()),
    }
}

/// The code of the placeholder for a missing answer.
pub(crate) const UNANSWERED: &str = "UNANSWERED";

fn is_unanswered(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == UNANSWERED)
}

/// Returns the placeholder for a missing answer.
fn unanswered(error: &RedisError) -> Value {
    error_of(&format!("{UNANSWERED} {error}"))
}

/// Returns the answer to one command of a pipeline that failed alone.
fn told(error: &RedisError) -> Value {
    match error.code() {
        Some(code) => error_of(&format!("{code} {}", error.detail().unwrap_or_default())),
        None => unanswered(error),
    }
}

fn is_load(cmd: &Cmd) -> bool {
    let mut words = words(cmd);
    let mut is = |name: &[u8]| words.next().is_some_and(|word| word.eq_ignore_ascii_case(name));
    is(b"SCRIPT") && is(b"LOAD")
}

/// Adds the answers of two masters up: numbers, and the numbers in lists; other lists are joined.
fn added(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Int(one), Value::Int(other)) => Value::Int(one + other),
        (Value::Array(one), Value::Array(other)) if one.iter().any(|part| matches!(part, Value::Int(_))) => {
            Value::Array(one.into_iter().zip(other).map(|(one, other)| added(one, other)).collect())
        }
        (Value::Array(mut one), Value::Array(other)) => {
            other.into_iter().for_each(|part| {
                if !one.contains(&part) {
                    one.push(part);
                }
            });
            Value::Array(one)
        }
        (one, _) => one,
    }
}

fn unserved(slot: u16) -> RedisError {
    io::Error::new(io::ErrorKind::NotConnected, format!("no master of the Cluster serves slot {slot}")).into()
}
