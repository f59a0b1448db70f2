//! Triggers: what makes entries due. All of them end on the agenda.

pub mod clock;
pub mod cron;
pub mod ear;
pub mod evictions;
pub mod inbox;
pub mod intake;
pub mod invalidation;
pub mod listener;
pub mod memory;
pub mod misses;
pub mod suspicion;

pub use clock::{Clock, Gone};
pub use cron::Cron;
pub use ear::Ear;
pub use evictions::Evictions;
pub use inbox::Inbox;
pub use intake::{At, Backlog, Intake, Receipt};
pub use invalidation::{Action, Complaints, Handled, Invalidator, Message};
pub use listener::Listener;
pub use memory::Memory;
pub use misses::Misses;
pub use suspicion::{Doubt, Suspicion};
