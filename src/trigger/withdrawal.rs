//! Entries that a list or a feed named before and names no more: what a warmup made due of them is withdrawn, so that
//! none is fetched that has no value.

use redis::RedisResult;
use tracing::info;

use crate::agenda::Agenda;
use crate::entry::{EntryKey, JobName};
use crate::popularity::buckets::Reader;
use crate::redis::{Connection, is_of_keys};

/// Withdraws what a warmup made due of the entries of `set` that are not named any more. To be called before the set is
/// replaced: after a crash in between, the next call does it again.
///
/// # Errors
/// Fails if Redis returns an error; a set of another type counts as empty.
pub(crate) async fn withdraw_unnamed(
    redis: &mut Connection,
    agenda: &Agenda,
    job: &JobName,
    set: String,
    is_named: impl Fn(&str) -> bool,
) -> RedisResult<()> {
    let mut names = match Reader::begin(redis, set).await {
        Err(e) if is_of_keys(&e) => return Ok(()),
        names => names?,
    };
    let mut withdrawn = 0;
    while let Some(names) = names.next(redis).await? {
        let unnamed: Vec<EntryKey> = names.into_iter().filter(|name| !is_named(name)).map(EntryKey::new).collect();
        withdrawn += agenda.withdraw(job, &unnamed).await?;
    }
    if withdrawn > 0 {
        info!(%job, withdrawn, "entries that the job no longer names and that were due are not fetched");
    }
    Ok(())
}
