//! Triggers: what makes entries due. All of them end on the agenda.

pub mod cron;
pub mod inbox;
pub mod invalidation;
pub mod listener;
pub mod misses;

pub use cron::Cron;
pub use inbox::Inbox;
pub use invalidation::{Action, Handled, Invalidator, Message};
pub use listener::Listener;
pub use misses::Misses;
