//! Clients that block until a stream has news.

use super::{ClientId, Reply, Server};
use crate::commands::groups::ReadGroup;
use crate::db::{Bytes, Value};

/// A client that blocks.
pub(super) struct Blocked {
    pub(super) client: ClientId,
    /// The words after `XREADGROUP`.
    pub(super) args: Vec<Bytes>,
    pub(super) keys: Vec<Bytes>,
    /// Until when it waits (ms); `None` for ever.
    pub(super) until: Option<i64>,
}

impl Server {
    /// Gives blocked readers what came, those that wait longest first.
    pub(super) fn wake_readers(&mut self) {
        let changed = std::mem::take(&mut self.live().changed);
        if changed.is_empty() || self.blocked.is_empty() {
            return;
        }
        for blocked in std::mem::take(&mut self.blocked) {
            let reply = blocked.keys.iter().any(|key| changed.contains(key)).then(|| self.retry(&blocked));
            match reply {
                None | Some(Reply::Nil) => self.blocked.push(blocked),
                Some(reply) => self.woken.push((blocked.client, reply)),
            }
        }
    }

    fn retry(&mut self, blocked: &Blocked) -> Reply {
        for key in &blocked.keys {
            if !self.db.slot(key).is_some_and(|slot| matches!(*slot.value, Value::Stream(_))) {
                return Reply::Error("UNBLOCKED the stream key no longer exists".into());
            }
        }
        let reply = ReadGroup::read(&blocked.args).and_then(|ask| ask.answer(&mut self.db));
        reply.unwrap_or_else(|error| {
            let is_gone = error.starts_with("NOGROUP");
            let gone = "NOGROUP the consumer group this client was blocked on no longer exists";
            Reply::Error(if is_gone { gone.into() } else { error })
        })
    }

    /// Ends the waits whose time is over.
    pub(super) fn end_waits(&mut self) {
        let now = self.db.now();
        let is_over = |blocked: &mut Blocked| blocked.until.is_some_and(|until| until <= now);
        for blocked in self.blocked.extract_if(.., is_over) {
            self.woken.push((blocked.client, Reply::Nil));
        }
    }
}
