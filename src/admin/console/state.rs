//! The state that all requests to the console share.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::live::Live;
use super::logins::Logins;
use crate::admin::Admin;

/// The console of a worker.
#[derive(Debug)]
pub struct Console {
    pub(super) admin: Arc<Admin>,
    /// The name of the environment.
    pub(super) title: Option<String>,
    pub(super) live: Live,
    pub(super) logins: Logins,
}

impl Console {
    /// Creates the console of the worker with this HTTP server; `title` is the name of the environment.
    pub fn new(admin: Arc<Admin>, title: Option<String>) -> Arc<Self> {
        Arc::new(Self { admin, title, live: Live::default(), logins: Logins::default() })
    }

    /// Reads the state of the fleet while somebody looks, until `over`.
    pub async fn run(self: Arc<Self>, over: CancellationToken) {
        self.live.run(&self.admin, &over).await;
    }
}
