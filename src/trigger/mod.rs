//! Triggers: what makes entries due, and so puts them on the agenda.
//!
//! - [`Cron`] runs the warmups.
//! - [`invalidation`] handles what services and people publish.
//! - [`Misses`] fetches keys that an API asked Redis for in vain.

pub mod cron;
mod feeds;
pub mod invalidation;
pub mod misses;
mod tick;

pub use cron::Cron;
pub use feeds::warm_up_now;
pub use invalidation::{
    Ack, At, Backlog, Channel, Clock, Complaints, GapDetector, Gone, Inbox, Invalidator, Pipeline, Watermark, inbox,
};
pub use misses::Misses;
