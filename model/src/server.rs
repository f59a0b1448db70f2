//! A Redis server in memory: clients send commands and get the replies of Redis 7.0.
//!
//! It does no I/O, and nothing in it happens by itself: its user sets the clock, and takes what clients are sent. The
//! same seed and the same calls give the same replies. `tests/real_redis.rs` compares them with a real server.

mod blocked;
mod clients;
mod config;
mod info;
mod scripts;

use std::collections::{BTreeMap, BTreeSet};

use blocked::Blocked;
use clients::Client;
use config::Config;
use scripts::Scripts;

pub use crate::commands::Reply;
use crate::commands::{Answer, DENIED_WHEN_FULL, FULL, Run, bulk, find, groups::ReadGroup};
use crate::db::{Bytes, Db};
pub use crate::live::ClientId;
use crate::live::Live;

/// A server.
pub struct Server {
    db: Db,
    scripts: Scripts,
    config: Config,
    clients: BTreeMap<ClientId, Client>,
    blocked: Vec<Blocked>,
    /// Replies to commands that blocked.
    woken: Vec<(ClientId, Reply)>,
    run_id: String,
    /// When it started (µs).
    started: i64,
    /// When data were last saved (ms).
    saved: i64,
    unknown: BTreeSet<String>,
}

impl Server {
    /// Starts an empty server; the clock shows this time (µs since the epoch).
    pub fn new(seed: u64, now_us: i64) -> Self {
        let mut db = Db::default();
        db.now_us = now_us;
        db.live = Some(Box::new(Live { seed, ..Live::default() }));
        let mut server = Self {
            db,
            scripts: Scripts::new(),
            config: Config::new(),
            clients: BTreeMap::new(),
            blocked: Vec::new(),
            woken: Vec::new(),
            run_id: String::new(),
            started: now_us,
            saved: now_us.div_euclid(1_000),
            unknown: BTreeSet::new(),
        };
        server.begin();
        server
    }

    fn live(&mut self) -> &mut Live {
        self.db.live.get_or_insert_default()
    }

    /// Gives the server a new id, and the settings of its file.
    fn begin(&mut self) {
        let part = |live: &mut Live| format!("{:08x}", live.random(1 << 32));
        self.run_id = (0..5).map(|_| part(self.live())).collect();
        self.started = self.db.now_us;
        self.config.reset();
        self.apply_config();
    }

    /// Carries out a client's command. There is no reply to a command that blocks: it comes later by [`Self::woken`];
    /// nor to one that subscribes: its confirmations come by [`Self::take_pushes`].
    pub fn execute<T: AsRef<[u8]>>(&mut self, client: ClientId, words: &[T]) -> Option<Reply> {
        let words: Vec<Bytes> = words.iter().map(|word| word.as_ref().into()).collect();
        let reply = self.answer(client, &words);
        self.wake_readers();
        reply
    }

    fn answer(&mut self, client: ClientId, words: &[Bytes]) -> Option<Reply> {
        let (name, args) = words.split_first()?;
        let refusal = match find(name) {
            None => {
                self.unknown.insert(name.to_string());
                let args: String = args.iter().map(|arg| format!("'{arg}' ")).collect();
                Err(format!("ERR unknown command '{name}', with args beginning with: {args}"))
            }
            Some(spec) if !spec.takes(words.len()) => Err(spec.wrong_number()),
            Some(spec) if spec.is(DENIED_WHEN_FULL) && self.live().is_full => Err(FULL.into()),
            Some(spec) => Ok(spec),
        };
        let state = self.clients.entry(client).or_default();
        let spec = match refusal {
            Ok(spec) => spec,
            Err(error) => {
                state.fails();
                return Some(Reply::Error(error));
            }
        };
        let is_control = matches!(spec.name, "exec" | "discard" | "multi" | "quit");
        if let Some(queued) = state.transaction.as_mut().filter(|_| !is_control) {
            queued.commands.push(words.to_vec());
            return Some(Reply::Status("QUEUED".into()));
        }
        let may_listen =
            matches!(spec.name, "subscribe" | "unsubscribe" | "psubscribe" | "punsubscribe" | "ping" | "quit");
        if !may_listen && state.listens {
            return Some(Reply::Error(format!(
                "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in \
                 this context",
                spec.name
            )));
        }
        if spec.name == "exec" {
            return Some(self.exec(client));
        }
        self.carry_out(client, words, true)
    }

    /// Carries out a command whose words are right. One that may not block gets its reply at once.
    fn carry_out(&mut self, client: ClientId, words: &[Bytes], may_block: bool) -> Option<Reply> {
        let (name, args) = words.split_first()?;
        let spec = find(name)?;
        if let Run::Keys(_) = spec.run {
            let reply = spec.run(&mut self.db, args);
            if may_block && reply == Reply::Nil && spec.name == "xreadgroup" {
                return self.block(client, args);
            }
            return Some(reply);
        }
        *self.live().calls.entry(spec.name).or_default() += 1;
        match spec.name {
            "subscribe" | "unsubscribe" | "psubscribe" | "punsubscribe" => {
                self.subscription(client, spec.name, args);
                None
            }
            name => Some(self.control(client, name, args).unwrap_or_else(Reply::Error)),
        }
    }

    fn control(&mut self, client: ClientId, name: &str, args: &[Bytes]) -> Answer {
        match name {
            "acl" => self.acl(args),
            "auth" => Err("ERR AUTH <password> called without any password configured for the default user. Are you \
                           sure your configuration is correct?"
                .into()),
            "client" => self.client(client, args),
            "config" => self.configure_by_command(args),
            "discard" => self.discard(client),
            "eval" => self.eval(args),
            "evalsha" => self.evalsha(args),
            "hello" => self.hello(client, args),
            "info" => Ok(bulk(self.info(args))),
            "multi" => self.multi(client),
            "ping" => self.ping(client, args),
            "pubsub" => self.pubsub(args),
            "quit" => Ok(crate::commands::ok()),
            "script" => self.script(args),
            "select" => self.select(args),
            name => {
                self.unknown.insert(name.to_owned());
                Err(format!("ERR the model does not know {name}"))
            }
        }
    }

    fn exec(&mut self, client: ClientId) -> Reply {
        let Some(queued) = self.clients.get_mut(&client).and_then(|client| client.transaction.take()) else {
            return Reply::Error("ERR EXEC without MULTI".into());
        };
        *self.live().calls.entry("exec").or_default() += 1;
        if queued.is_broken {
            return Reply::Error("EXECABORT Transaction discarded because of previous errors.".into());
        }
        let replies = queued.commands.iter().filter_map(|words| self.carry_out(client, words, false));
        Reply::Array(replies.collect())
    }

    /// Returns the names of the commands that clients sent and the model does not have.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.unknown.iter().map(String::as_str)
    }

    /// Returns the keys, for checks that disturb nothing.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Returns the clock (µs).
    pub fn now_us(&self) -> i64 {
        self.db.now_us
    }

    /// Sets the clock (µs), also back. What has expired by then is gone.
    pub fn set_clock(&mut self, now_us: i64) {
        self.db.set_clock_us(now_us);
        self.wake_readers();
        self.end_waits();
    }

    /// Puts the clock forward, or back, by so many microseconds.
    pub fn advance(&mut self, us: i64) {
        self.set_clock(self.db.now_us + us);
    }

    /// Returns when the next key expires or the next blocked command ends by itself (ms).
    pub fn next_event(&self) -> Option<i64> {
        // A key is there in the millisecond in which it expires.
        let expiry = self.db.live.as_ref().and_then(|live| live.expiries.first()).map(|(at, _)| at + 1);
        expiry.into_iter().chain(self.blocked.iter().filter_map(|blocked| blocked.until)).min()
    }

    /// Returns what a client was sent besides replies since it was last asked for: messages and confirmations of
    /// subscriptions, as RESP2 has them.
    pub fn take_pushes(&mut self, client: ClientId) -> Vec<Reply> {
        self.live().channels.take(client)
    }

    /// Returns the clients for which there are pushes.
    pub fn with_pushes(&mut self) -> Vec<ClientId> {
        self.live().channels.waiting()
    }

    /// Returns the replies to commands that blocked and no longer do.
    pub fn woken(&mut self) -> Vec<(ClientId, Reply)> {
        std::mem::take(&mut self.woken)
    }

    /// Ends a client's connection: its transaction, its subscriptions, and the command on which it blocks.
    pub fn disconnect(&mut self, client: ClientId) {
        self.clients.remove(&client);
        self.blocked.retain(|blocked| blocked.client != client);
        self.woken.retain(|(of, _)| *of != client);
        self.live().channels.forget(client);
    }

    /// Restarts the server, with its data or empty. All connections end; scripts and settings of clients are lost.
    pub fn restart(&mut self, with_data: bool) {
        let clients: Vec<ClientId> = self.clients.keys().copied().collect();
        clients.into_iter().for_each(|client| self.disconnect(client));
        if !with_data {
            self.db.clear();
        }
        self.scripts.forget();
        let live = self.live();
        (live.reads, live.expired, live.evicted, live.is_full) = ([0; 2], 0, 0, false);
        live.calls.clear();
        live.changed.clear();
        self.begin();
    }

    /// Returns the data that the server would save now.
    pub fn save(&self) -> Db {
        let mut saved = self.db.clone();
        saved.live = None;
        saved
    }

    /// Restarts the server with data that were saved before.
    pub fn restart_from(&mut self, saved: &Db) {
        self.restart(false);
        for (key, slot) in saved.keys() {
            self.db.put_slot(key, slot.clone());
        }
    }

    /// Removes all keys, as an operator may.
    pub fn flush(&mut self) {
        self.db.clear();
        self.wake_readers();
    }

    /// Evicts a key, as a server does whose memory is used up; returns false where there is none.
    pub fn evict(&mut self, key: &[u8]) -> bool {
        let was_there = self.db.remove(key);
        self.live().evicted += u64::from(was_there);
        self.wake_readers();
        was_there
    }

    /// Makes the server refuse what needs memory, as under `noeviction`, or ends that.
    pub fn set_full(&mut self, is_full: bool) {
        self.live().is_full = is_full;
    }

    /// Returns true if a client blocks.
    pub fn is_blocked(&self, client: ClientId) -> bool {
        self.blocked.iter().any(|blocked| blocked.client == client)
    }

    fn block(&mut self, client: ClientId, args: &[Bytes]) -> Option<Reply> {
        let Ok(ReadGroup { block: Some(time), keys, .. }) = ReadGroup::read(args) else { return Some(Reply::Nil) };
        let until = (time > 0).then(|| self.db.now() + time);
        self.blocked.push(Blocked { client, args: args.to_vec(), keys: keys.to_vec(), until });
        None
    }
}
