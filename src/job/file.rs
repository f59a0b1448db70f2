//! The file format: TOML to [`Jobs`](super::Jobs).
use super::{Faults, Jobs};
use std::path::Path;

pub(super) fn load(_folder: &Path, _env: &dyn Fn(&str) -> Option<String>) -> Result<Jobs, Faults> {
    todo!()
}
