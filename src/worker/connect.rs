//! Connecting: waits for a Redis that a worker can use, and says why it waits.

use std::time::{Duration, Instant};

use anyhow::bail;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::admin::Admin;
use crate::config::Settings;
use crate::protocol::Keys;
use crate::redis::{Connection, requirements};

/// The time after which a command fails. Longer than the longest pauses of Redis (a fork, a slow disk).
pub(super) const COMMAND: Duration = Duration::from_secs(5);
/// The timeout on the connection on which reads wait for messages.
pub(super) const BLOCKING: Duration = Duration::from_secs(10);
/// The first and the longest wait between two attempts.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// The interval at which the log repeats an unchanged reason.
const REPEAT: Duration = Duration::from_secs(30);

/// Connects, and waits while Redis is unavailable. Commands on the connection fail after `timeout`.
///
/// # Errors
/// `stop` came first.
pub(super) async fn connect(
    settings: &Settings,
    timeout: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<Connection> {
    let mut wait = Wait::default();
    loop {
        match settings.redis.manager(timeout).await {
            Ok(redis) => return Ok(redis),
            Err(e) => wait.before_next(settings, requirements::explain(&e), stop).await?,
        }
    }
}

/// Connects as [`connect`] does, and waits until server and user meet the requirements. Tells `admin` why it waits.
///
/// # Errors
/// `stop` came first.
pub(super) async fn connect_usable(
    settings: &Settings,
    admin: &Admin,
    stop: &CancellationToken,
) -> anyhow::Result<Connection> {
    let keys = settings.keys();
    let mut wait = Wait::default();
    let mut redis = loop {
        let connected = settings.redis.manager(COMMAND).await;
        let fault = match connected {
            Ok(mut redis) => match unusable(&mut redis, &keys).await {
                Ok(None) => break redis,
                Ok(Some(fault)) => fault,
                Err(e) => requirements::explain(&e),
            },
            Err(e) => requirements::explain(&e),
        };
        admin.waits(&fault);
        wait.before_next(settings, fault, stop).await?;
    };
    match requirements::doing_without(&mut redis, &keys).await {
        Ok(costs) if costs.is_empty() => {}
        Ok(costs) => warn!("the Redis user lacks optional rights (docs/redis.md): {}", costs.join("; ")),
        Err(e) => debug!("cannot check the rights of the Redis user: {e}"),
    }
    Ok(redis)
}

/// Returns why a worker cannot use this server or this user; `None` if it can.
async fn unusable(redis: &mut Connection, keys: &Keys) -> redis::RedisResult<Option<String>> {
    if let Some(fault) = requirements::unsupported(redis).await? {
        return Ok(Some(fault));
    }
    requirements::lacking(redis, keys).await
}

/// The wait between two attempts: it doubles each time, and logs the reason when that changes and now and then.
#[derive(Default)]
struct Wait {
    logged: Option<(Instant, String)>,
    tries: u32,
}

impl Wait {
    /// # Errors
    /// `stop` came first.
    async fn before_next(&mut self, settings: &Settings, why: String, stop: &CancellationToken) -> anyhow::Result<()> {
        let is_logged = self.logged.as_ref().is_some_and(|(at, logged)| *logged == why && at.elapsed() <= REPEAT);
        if !is_logged {
            warn!("waits for Redis at {}: {why}", settings.redis);
            self.logged = Some((Instant::now(), why));
        }
        let pause = LONGEST_WAIT.min(FIRST_WAIT * 2_u32.saturating_pow(self.tries));
        self.tries = self.tries.saturating_add(1);
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = stop.cancelled() => bail!("stopped while waiting for Redis at {}", settings.redis),
        }
    }
}
