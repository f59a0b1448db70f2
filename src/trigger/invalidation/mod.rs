//! Invalidations: how a worker hears them, and how it handles them.
//!
//! - [`Channel`] and [`Inbox`] receive messages; [`Pipeline`] orders and bounds them; [`Invalidator`] does what they
//!   ask for.
//! - `Debounce` holds refreshes back in a storm; an [`Ack`] acknowledges a message when all of it is done.
//! - [`GapDetector`], [`Watermark`] and [`Clock`] notice when invalidations may have been missed, and note a gap.

mod ack;
mod backlog;
mod channel;
pub mod clock;
mod complaints;
mod coverage;
mod debounce;
mod gap_detector;
pub mod inbox;
mod invalidator;
mod pipeline;
mod watermark;

pub use ack::Ack;
pub use backlog::Backlog;
pub use channel::Channel;
pub(in crate::trigger) use channel::WARMUP_SIGNAL;
pub use clock::{Clock, Gone};
pub use complaints::Complaints;
pub use gap_detector::{GapDetector, known_to_workers};
pub use inbox::Inbox;
pub use invalidator::{Debounced, Invalidator};
pub use pipeline::{At, Pipeline, PipelineLoop};
pub use watermark::Watermark;
