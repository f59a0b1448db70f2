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
pub use gap_detector::GapDetector;
pub use inbox::Inbox;
pub use invalidator::{Complaints, Debounced, Invalidator};
pub use pipeline::{Ack, At, Backlog, Pipeline};
pub use watermark::Watermark;
