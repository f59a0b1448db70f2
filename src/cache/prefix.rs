//! The prefix of a cache's keys.

use super::Error;
use crate::protocol::Keys;

/// Checks that a prefix is not empty and not Samovar's own.
pub(super) fn check_prefix(prefix: &str, names: &Keys) -> Result<(), Error> {
    if prefix.is_empty() {
        return Err(Error::Invalid("the prefix is empty: set one, so that foreign keys are not touched".to_owned()));
    }
    if names.is_own(&format!("{prefix}:")) {
        return Err(Error::Invalid(format!("the prefix `{prefix}` is Samovar's own: choose another")));
    }
    Ok(())
}
