//! Triggers: what makes entries due. All of them end on the agenda.

pub mod cron;
pub mod invalidation;
pub mod misses;

pub use cron::Cron;
pub use invalidation::{
    At, Backlog, Clock, Complaints, Ear, Gone, Inbox, Intake, Invalidator, Listener, Memory, Receipt, inbox,
};
pub use misses::Misses;
