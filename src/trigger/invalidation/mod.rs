//! Invalidations: how they are heard, and what is done for them.

mod channel;
pub mod clock;
mod gap_detector;
pub mod inbox;
mod invalidator;
mod pipeline;
mod watermark;

pub use channel::Listener;
pub use clock::{Clock, Gone};
pub use gap_detector::Ear;
pub use inbox::Inbox;
pub use invalidator::{Complaints, HeldOff, Invalidator};
pub use pipeline::{At, Backlog, Intake, Receipt};
pub use watermark::Memory;
