//! Acknowledgement: tells where a message came from that all of it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::gap_detector::Unhandled;

/// A part of a message that is not done yet. When its last part is done, the message is acknowledged; a part that is
/// dropped prevents that.
#[derive(Debug)]
pub struct Ack(Arc<Pending>);

#[derive(Debug)]
struct Pending {
    parts: AtomicUsize,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    /// The inbox: the message's id, and the channel that takes it once it is handled.
    Inbox(String, mpsc::UnboundedSender<String>),
    /// The channel: the message's number.
    Channel(u64, Arc<Unhandled>),
}

impl Ack {
    /// Creates the acknowledgement of the message `id` from the inbox, which is sent to `done`.
    pub fn new(id: String, done: mpsc::UnboundedSender<String>) -> Self {
        Self::of(Origin::Inbox(id, done))
    }

    /// Creates the acknowledgement of a message from the channel, by its number.
    pub fn heard(number: u64, unhandled: Arc<Unhandled>) -> Self {
        Self::of(Origin::Channel(number, unhandled))
    }

    fn of(origin: Origin) -> Self {
        Self(Arc::new(Pending { parts: AtomicUsize::new(1), origin }))
    }

    /// Returns the number of a message from the channel; `None` for one from the inbox.
    pub(super) fn number(&self) -> Option<u64> {
        match &self.0.origin {
            Origin::Channel(number, _) => Some(*number),
            Origin::Inbox(..) => None,
        }
    }

    /// Adds a part to the message.
    pub(super) fn part(&self) -> Self {
        self.0.parts.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&self.0))
    }

    /// Marks this part as done.
    pub fn done(self) {
        if self.0.parts.fetch_sub(1, Ordering::AcqRel) == 1 {
            match &self.0.origin {
                Origin::Inbox(id, done) => _ = done.send(id.clone()),
                Origin::Channel(number, unhandled) => unhandled.done(*number),
            }
        }
    }
}
