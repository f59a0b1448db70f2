//! Triggers: what makes entries due. All of them end on the agenda.

pub mod cron;
pub mod invalidation;
pub mod misses;

pub use cron::Cron;
pub use invalidation::{
    Ack, At, Backlog, Clock, Complaints, GapDetector, Gone, Inbox, Invalidator, Listener, Pipeline, Watermark, inbox,
};
pub use misses::Misses;
