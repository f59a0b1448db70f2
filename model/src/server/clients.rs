//! Connections: transactions, subscriptions, names.

use super::{ClientId, Reply, Server};
use crate::commands::keys::unknown_subcommand;
use crate::commands::number::int;
use crate::commands::{Answer, bulk, count, glob, ok};
use crate::db::Bytes;

/// The version that the server tells.
pub(super) const VERSION: &str = "7.0.15";

/// A connection.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// The commands since `MULTI`.
    pub(super) transaction: Option<Transaction>,
    /// It has subscriptions.
    pub(super) listens: bool,
    name: Option<Bytes>,
}

/// The commands that were queued since `MULTI`.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    pub(super) commands: Vec<Vec<Bytes>>,
    /// A command was refused.
    pub(super) is_broken: bool,
}

impl Client {
    /// Notes that a command was refused.
    pub(super) fn fails(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.is_broken = true;
        }
    }
}

impl Server {
    fn client_of(&mut self, client: ClientId) -> &mut Client {
        self.clients.entry(client).or_default()
    }

    pub(super) fn multi(&mut self, client: ClientId) -> Answer {
        let transaction = &mut self.client_of(client).transaction;
        if transaction.is_some() {
            return Err("ERR MULTI calls can not be nested".into());
        }
        *transaction = Some(Transaction::default());
        Ok(ok())
    }

    pub(super) fn discard(&mut self, client: ClientId) -> Answer {
        self.client_of(client).transaction.take().map(|_| ok()).ok_or_else(|| "ERR DISCARD without MULTI".into())
    }

    pub(super) fn ping(&mut self, client: ClientId, args: &[Bytes]) -> Answer {
        if args.len() > 1 {
            return Err("ERR wrong number of arguments for 'ping' command".into());
        }
        let text = args.first().cloned();
        if self.client_of(client).listens {
            return Ok(Reply::Array(vec![bulk("pong"), Reply::Bulk(text.unwrap_or_else(|| "".into()))]));
        }
        Ok(text.map_or_else(|| Reply::Status("PONG".into()), Reply::Bulk))
    }

    pub(super) fn subscription(&mut self, client: ClientId, name: &'static str, args: &[Bytes]) {
        let is_glob = name.starts_with('p');
        let ends = name.ends_with("unsubscribe");
        let channels = &mut self.live().channels;
        let mut names: Vec<Option<Bytes>> = args.iter().cloned().map(Some).collect();
        if names.is_empty() {
            names = channels.names(client, is_glob).into_iter().map(Some).collect();
        }
        if names.is_empty() {
            names.push(None);
        }
        for channel in names {
            match &channel {
                Some(channel) if ends => channels.unsubscribe(client, channel, is_glob),
                Some(channel) => channels.subscribe(client, channel, is_glob),
                None => {}
            }
            let told = channel.map_or(Reply::Nil, Reply::Bulk);
            let count = count(channels.count(client));
            channels.push(client, Reply::Array(vec![bulk(name), told, count]));
        }
        let listens = channels.count(client) > 0;
        self.client_of(client).listens = listens;
    }

    pub(super) fn pubsub(&mut self, args: &[Bytes]) -> Answer {
        let channels = &self.live().channels;
        match (args[0].to_ascii_uppercase().as_slice(), &args[1..]) {
            (b"NUMSUB", names) => {
                let told = |name: &Bytes| [Reply::Bulk(name.clone()), count(channels.subscribers(name))];
                Ok(Reply::Array(names.iter().flat_map(told).collect()))
            }
            (b"CHANNELS", globs) if globs.len() <= 1 => {
                let matches = |name: &&Bytes| globs.first().is_none_or(|glob| glob::matches(glob, name));
                let names = channels.all().map(|(name, _)| name).filter(matches);
                Ok(Reply::Array(names.cloned().map(Reply::Bulk).collect()))
            }
            (b"NUMPAT", []) => Ok(count(channels.patterns())),
            _ => Err(unknown_subcommand("PUBSUB", &args[0])),
        }
    }

    pub(super) fn client(&mut self, client: ClientId, args: &[Bytes]) -> Answer {
        match (args[0].to_ascii_uppercase().as_slice(), &args[1..]) {
            (b"ID", []) => Ok(Reply::Int(i64::try_from(client).unwrap_or(i64::MAX))),
            (b"GETNAME", []) => Ok(self.client_of(client).name.clone().map_or(Reply::Nil, Reply::Bulk)),
            (b"SETNAME", [name]) => {
                self.client_of(client).name = Some(name.clone()).filter(|name| !name.is_empty());
                Ok(ok())
            }
            (b"NO-EVICT", [_]) => Ok(ok()),
            _ => {
                // Redis 7.0 has neither `NO-TOUCH` nor `SETINFO`.
                if !matches!(args[0].to_ascii_uppercase().as_slice(), b"NO-TOUCH" | b"SETINFO") {
                    self.unknown.insert(format!("CLIENT {}", args[0]));
                }
                Err(unknown_subcommand("CLIENT", &args[0]))
            }
        }
    }

    pub(super) fn hello(&mut self, client: ClientId, args: &[Bytes]) -> Answer {
        match args.first().map(|version| int(version)) {
            None | Some(Ok(2)) if args.len() <= 1 => {}
            _ => return Err("NOPROTO unsupported protocol version".into()),
        }
        let id = Reply::Int(i64::try_from(client).unwrap_or(i64::MAX));
        let pairs = [
            ("server", bulk("redis")),
            ("version", bulk(VERSION)),
            ("proto", Reply::Int(2)),
            ("id", id),
            ("mode", bulk("standalone")),
            ("role", bulk("master")),
            ("modules", Reply::Array(Vec::new())),
        ];
        Ok(Reply::Array(pairs.into_iter().flat_map(|(name, value)| [bulk(name), value]).collect()))
    }

    pub(super) fn select(&mut self, args: &[Bytes]) -> Answer {
        if *args[0] != *b"0" {
            self.unknown.insert(format!("SELECT {}", args[0]));
            return Err("ERR DB index is out of range".into());
        }
        Ok(ok())
    }

    pub(super) fn acl(&mut self, args: &[Bytes]) -> Answer {
        if args[0].eq_ignore_ascii_case(b"WHOAMI") {
            return Ok(bulk("default"));
        }
        self.unknown.insert(format!("ACL {}", args[0]));
        Err(unknown_subcommand("ACL", &args[0]))
    }
}
