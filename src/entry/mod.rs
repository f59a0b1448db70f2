//! The vocabulary of one entry: its names, why it is due, how its warming ended. Nothing here depends on Redis.

pub mod duration;
#[cfg(feature = "worker")]
pub mod escape;
mod excerpt;
#[cfg(feature = "worker")]
mod fingerprint;
#[cfg(feature = "worker")]
mod key_set;
mod names;
#[cfg(feature = "worker")]
mod outcome;
#[cfg(feature = "worker")]
mod trigger;
#[cfg(feature = "worker")]
pub mod usage;
#[cfg(feature = "worker")]
mod validators;
#[cfg(feature = "worker")]
mod version;

pub use excerpt::excerpt;
#[cfg(feature = "worker")]
pub use fingerprint::{compact, hash};
#[cfg(feature = "worker")]
pub use key_set::KeySet;
pub use names::{EntryKey, JobName, LONGEST_KEY, UpstreamName};
#[cfg(feature = "worker")]
pub use outcome::{LastOutcome, Outcome, Recheck};
#[cfg(feature = "worker")]
pub use trigger::{Priority, Trigger};
#[cfg(feature = "worker")]
pub use usage::Usage;
#[cfg(feature = "worker")]
pub use validators::Validators;
#[cfg(feature = "worker")]
pub use version::{Announced, Version};
