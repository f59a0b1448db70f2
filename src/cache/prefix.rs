//! The prefix of a cache's keys.

use super::Error;
use crate::protocol::Keys;

/// A prefix is some text that Samovar's own keys do not begin with.
pub(super) fn check_prefix(prefix: &str, names: &Keys) -> Result<(), Error> {
    if prefix.is_empty() {
        return Err(Error::Invalid("the prefix is empty: give one, so that nobody else's keys are touched".to_owned()));
    }
    if names.is_own(&format!("{prefix}:")) {
        return Err(Error::Invalid(format!("the prefix `{prefix}` is Samovar's own: give another")));
    }
    Ok(())
}
