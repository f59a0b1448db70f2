//! A test's own connection: to its server, or to the nodes of its Cluster as if they were one server.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Arg, AsyncConnectionConfig, Cmd, Pipeline, RedisFuture, RedisResult, Value};
use samovar::protocol::keys::slot;
use samovar::redis::RedisUrl;

use super::eventually::DEADLINE;

/// The time between two attempts at a command that a Cluster refuses for now.
const AGAIN: Duration = Duration::from_millis(10);

/// A connection that does not come back by itself. On a Cluster, a command goes to the node of its keys or, without
/// keys, to all nodes, whose answers become one.
#[derive(Clone)]
pub struct Link {
    nodes: Vec<Node>,
    /// The node that was last known to own a slot.
    owners: HashMap<u16, usize>,
    password: Option<String>,
}

#[derive(Clone)]
struct Node {
    port: u16,
    connection: MultiplexedConnection,
}

/// The nodes that a command goes to.
enum Scope {
    /// The one of this word.
    Key(usize),
    /// The ones of the words after the first, which are keys, or keys and values in turn.
    Keys(usize, Merge),
    All(Merge),
}

/// The way in which answers become one.
#[derive(Clone, Copy)]
enum Merge {
    First,
    Sum,
    Concatenation,
    /// Names and counts in turn.
    Counts,
}

/// A command, or a transaction on one node.
#[derive(Clone, Copy)]
enum Sent<'a> {
    Command(&'a Cmd),
    Transaction(&'a Pipeline, usize, usize),
}

impl Link {
    /// Connects to the nodes on these ports.
    pub(super) async fn to(ports: &[u16], password: Option<&str>) -> RedisResult<Self> {
        let mut link = Self { nodes: Vec::new(), owners: HashMap::new(), password: password.map(str::to_owned) };
        for port in ports {
            link.node(*port).await?;
        }
        Ok(link)
    }

    /// Connects to one server.
    pub(super) async fn of(client: redis::Client) -> RedisResult<Self> {
        let node = Node { port: 0, connection: connected(&client).await? };
        Ok(Self { nodes: vec![node], owners: HashMap::new(), password: None })
    }

    /// Returns the node on this port.
    async fn node(&mut self, port: u16) -> RedisResult<usize> {
        if let Some(nth) = self.nodes.iter().position(|node| node.port == port) {
            return Ok(nth);
        }
        let connection = connected(&RedisUrl::at("127.0.0.1", port, 0, self.password.as_deref()).client()?).await?;
        self.nodes.push(Node { port, connection });
        Ok(self.nodes.len() - 1)
    }

    async fn routed(&mut self, command: &Cmd) -> RedisResult<Value> {
        let words = words(command);
        match scope(&words) {
            Scope::Key(_) if name(&words) == "RENAME" => self.renamed(&words).await,
            Scope::Key(at) => self.at_slot(slot_of(&words[at]), Sent::Command(command)).await.map(only),
            Scope::Keys(step, merge) => {
                let mut answers = Vec::new();
                for each in words[1..].chunks(step) {
                    let mut part = redis::cmd(&name(&words));
                    part.arg(each);
                    answers.extend(self.at_slot(slot_of(&each[0]), Sent::Command(&part)).await?);
                }
                Ok(merge.all(answers))
            }
            Scope::All(merge) => {
                let mut answers = Vec::new();
                for node in &mut self.nodes {
                    answers.push(node.connection.send_packed_command(command).await?.extract_error()?);
                    if name(&words) == "PUBLISH" {
                        break;
                    }
                }
                if name(&words) == "PUBLISH" {
                    // It is published on all nodes, but the answer counts the subscribers of one.
                    for node in &mut self.nodes[1..] {
                        let heard = redis::cmd("PUBSUB").arg("NUMSUB").arg(&words[1]).to_owned();
                        let (_, heard): (Value, i64) = heard.query_async(&mut node.connection).await?;
                        answers.push(Value::Int(heard));
                    }
                }
                Ok(merge.all(answers))
            }
        }
    }

    /// Renames a key, across slots.
    async fn renamed(&mut self, words: &[Vec<u8>]) -> RedisResult<Value> {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&words[1]).query_async(self).await?;
        let mut restore = redis::cmd("RESTORE");
        restore.arg(&words[2]).arg(0).arg(dump).arg("REPLACE").exec_async(self).await?;
        redis::cmd("DEL").arg(&words[1]).exec_async(self).await?;
        Ok(Value::Okay)
    }

    /// Sends to the node that owns a slot, however often it is sent elsewhere.
    async fn at_slot(&mut self, slot: u16, sent: Sent<'_>) -> RedisResult<Vec<Value>> {
        let begun = Instant::now();
        let mut nth = self.owners.get(&slot).copied().unwrap_or(0);
        loop {
            let answer = sent.to(&mut self.nodes[nth].connection).await;
            let Some((code, detail)) = refusal(&answer).filter(|_| begun.elapsed() < DEADLINE) else { return answer };
            match code.as_str() {
                "MOVED" => {
                    nth = self.node(port(&detail)).await?;
                    self.owners.insert(slot, nth);
                }
                "ASK" if matches!(sent, Sent::Command(_)) => {
                    let asked = self.node(port(&detail)).await?;
                    let connection = &mut self.nodes[asked].connection;
                    redis::cmd("ASKING").exec_async(connection).await?;
                    let answer = sent.to(connection).await;
                    if refusal(&answer).is_none() {
                        return answer;
                    }
                }
                _ => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    async fn pipelined(&mut self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let slots: Vec<Option<u16>> = pipeline.cmd_iter().map(slot_of_command).collect();
        if let Some(Some(first)) = slots.first()
            && offset > 0
            && slots.iter().all(|slot| *slot == Some(*first))
        {
            // A transaction that meets the wrong node does not say which one is right.
            let command = pipeline.cmd_iter().next().map(words).unwrap_or_default();
            if let Scope::Key(at) = scope(&command) {
                self.at_slot(*first, Sent::Command(redis::cmd("TYPE").arg(&command[at]))).await?;
            }
            return self.at_slot(*first, Sent::Transaction(pipeline, offset, count)).await;
        }
        let mut answers = Vec::new();
        for command in pipeline.cmd_iter() {
            answers.push(self.routed(command).await?);
        }
        Ok(if offset > 0 { vec![Value::Array(answers)] } else { answers })
    }
}

impl Sent<'_> {
    async fn to(self, connection: &mut MultiplexedConnection) -> RedisResult<Vec<Value>> {
        match self {
            Self::Command(command) => {
                Ok(vec![connection.send_packed_command(command).await.and_then(Value::extract_error)?])
            }
            Self::Transaction(pipeline, offset, count) => {
                connection.send_packed_commands(pipeline, offset, count).await
            }
        }
    }
}

impl Merge {
    fn all(self, answers: Vec<Value>) -> Value {
        match self {
            Self::First => only(answers),
            Self::Sum => {
                let sum: Vec<i64> = answers.iter().map(|answer| redis::from_redis_value_ref(answer).unwrap()).collect();
                Value::Int(sum.iter().sum())
            }
            Self::Counts => {
                let all: Vec<Vec<Value>> =
                    answers.iter().map(|one| redis::from_redis_value_ref(one).unwrap()).collect();
                let count = |at: usize| {
                    all.iter().map(|one| redis::from_redis_value_ref::<i64>(&one[at]).unwrap()).sum::<i64>()
                };
                let merged =
                    (0..all[0].len()).map(|at| if at % 2 == 0 { all[0][at].clone() } else { Value::Int(count(at)) });
                Value::Array(merged.collect())
            }
            Self::Concatenation => {
                let is_text = |answer: &Value| matches!(answer, Value::BulkString(_) | Value::VerbatimString { .. });
                if answers.iter().all(is_text) {
                    let texts: Vec<String> =
                        answers.iter().map(|answer| redis::from_redis_value_ref(answer).unwrap()).collect();
                    return Value::BulkString(texts.concat().into());
                }
                let parts = answers.into_iter().flat_map(|answer| match answer {
                    Value::Array(parts) | Value::Set(parts) => parts,
                    other => vec![other],
                });
                Value::Array(parts.collect())
            }
        }
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            match &mut *self.nodes {
                [one] if one.port == 0 => one.connection.send_packed_command(cmd).await,
                _ => self.routed(cmd).await,
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            match &mut *self.nodes {
                [one] if one.port == 0 => one.connection.send_packed_commands(pipeline, offset, count).await,
                _ => self.pipelined(pipeline, offset, count).await,
            }
        })
    }

    fn get_db(&self) -> i64 {
        self.nodes[0].connection.get_db()
    }
}

async fn connected(client: &redis::Client) -> RedisResult<MultiplexedConnection> {
    // A busy machine takes its time, and so does a Redis that a test told to.
    let patient =
        AsyncConnectionConfig::new().set_connection_timeout(Some(DEADLINE)).set_response_timeout(Some(DEADLINE));
    client.get_multiplexed_async_connection_with_config(&patient).await
}

fn words(command: &Cmd) -> Vec<Vec<u8>> {
    let word = |arg: Arg<&[u8]>| match arg {
        Arg::Simple(word) => word.to_vec(),
        _ => b"0".to_vec(),
    };
    command.args_iter().map(word).collect()
}

fn name(words: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(&words[0]).to_uppercase()
}

fn scope(words: &[Vec<u8>]) -> Scope {
    let sub = words.get(1).map(|word| String::from_utf8_lossy(word).to_uppercase()).unwrap_or_default();
    let streams = || words.iter().position(|word| word.eq_ignore_ascii_case(b"STREAMS")).unwrap_or_default() + 1;
    match (name(words).as_str(), sub.as_str()) {
        ("DBSIZE" | "PUBLISH", _) | ("CLIENT", "KILL") | ("PUBSUB", "NUMPAT") => Scope::All(Merge::Sum),
        ("INFO" | "KEYS", _) | ("CLIENT", "LIST") | ("SLOWLOG", "GET") => Scope::All(Merge::Concatenation),
        ("EVAL" | "EVALSHA", _) if words[2] != b"0" => Scope::Key(3),
        ("XREAD" | "XREADGROUP", _) => Scope::Key(streams()),
        ("XINFO" | "XGROUP" | "OBJECT" | "MEMORY", _) => Scope::Key(2),
        ("DEL" | "UNLINK" | "EXISTS" | "TOUCH", _) => Scope::Keys(1, Merge::Sum),
        ("MGET", _) => Scope::Keys(1, Merge::Concatenation),
        ("MSET", _) => Scope::Keys(2, Merge::First),
        ("PUBSUB", "NUMSUB") => Scope::All(Merge::Counts),
        ("SCAN" | "MONITOR" | "SUBSCRIBE" | "WAIT", _) => {
            panic!("{} needs a connection to one node", name(words))
        }
        (
            "ACL" | "BGSAVE" | "CLIENT" | "CONFIG" | "DEBUG" | "ECHO" | "EVAL" | "EVALSHA" | "FLUSHALL" | "FLUSHDB"
            | "FUNCTION" | "LATENCY" | "PING" | "SAVE" | "SCRIPT" | "SLOWLOG" | "TIME",
            _,
        ) => Scope::All(Merge::First),
        _ => Scope::Key(1),
    }
}

fn slot_of_command(command: &Cmd) -> Option<u16> {
    let words = words(command);
    match scope(&words) {
        Scope::Key(at) => Some(slot_of(&words[at])),
        Scope::Keys(step, _) => {
            let slots: Vec<u16> = words[1..].chunks(step).map(|each| slot_of(&each[0])).collect();
            slots.iter().all(|slot| *slot == slots[0]).then(|| slots[0])
        }
        Scope::All(_) => None,
    }
}

fn slot_of(key: &[u8]) -> u16 {
    slot(&String::from_utf8_lossy(key))
}

/// Returns the code and the details of an error that another attempt may not meet.
fn refusal(answer: &RedisResult<Vec<Value>>) -> Option<(String, String)> {
    let of = |code: Option<&str>, detail: Option<&str>| {
        let code = code.filter(|code| matches!(*code, "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN"))?;
        Some((code.to_owned(), detail.unwrap_or_default().to_owned()))
    };
    match answer {
        Err(e) => of(e.code(), e.detail()),
        Ok(answers) => answers.iter().find_map(|answer| match answer {
            Value::ServerError(e) => of(Some(e.code()), e.details()),
            _ => None,
        }),
    }
}

/// Returns the port in `3999 127.0.0.1:7001`.
fn port(detail: &str) -> u16 {
    detail.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port: {detail}"))
}

fn only(answers: Vec<Value>) -> Value {
    answers.into_iter().next().unwrap_or(Value::Nil)
}
