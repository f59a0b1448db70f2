//! Refusals: errors of Redis that no further try changes.

use redis::RedisError;

/// Returns `true` if Redis refuses the command for good: no right, or no such command.
pub(crate) fn is_refusal(error: &RedisError) -> bool {
    Refused::by(error).is_some()
}

/// Why Redis refuses a command for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// No right to the command, or no such command.
    Command,
    /// No right to a key.
    Key,
    /// No right to a channel.
    Channel,
}

impl Refused {
    /// Returns why, if the error says that.
    pub(super) fn by(error: &RedisError) -> Option<Self> {
        let text = error.to_string();
        match error.code() {
            Some("NOPERM") if text.contains(" to run ") => Some(Self::Command),
            Some("NOPERM") if text.contains(" channel") => Some(Self::Channel),
            Some("NOPERM") => Some(Self::Key),
            Some("NOPROTO") => Some(Self::Command),
            // Commands that do not exist, or that the operator renamed or disabled.
            Some("ERR")
                if ["unknown", "not support", "disabled", "number of arg"].iter().any(|part| text.contains(part)) =>
            {
                Some(Self::Command)
            }
            _ => None,
        }
    }
}
