//! What one-shot commands share: the jobs, and a connection that is there or not.

use std::sync::Arc;

use super::exit;
use crate::config::{Environment, Settings};
use crate::job::Jobs;

/// Reads the jobs folder, or prints all its faults.
pub(super) fn jobs(settings: &Settings, env: &Environment) -> Result<Arc<Jobs>, u8> {
    match Jobs::load(&settings.jobs, settings.default_ttl, &|name| env.get(name)) {
        Ok(jobs) => Ok(Arc::new(jobs)),
        Err(faults) => {
            eprint!("{}", faults.render(std::io::IsTerminal::is_terminal(&std::io::stderr())));
            Err(exit::CONFIG)
        }
    }
}
