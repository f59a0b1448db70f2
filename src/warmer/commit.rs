//! The commit of an attempt: an answer is written under the lease, or another round is begun.

use std::time::{Duration, Instant};

use redis::RedisResult;

use super::attempt::{Attempt, Step, Stop};
use super::ending::Ending;
use super::failure::LONGEST_REASON;
use super::freshness::{is_storm, known};
use super::lag::render_version;
use super::recheck::with_recheck;
use super::round::Round;
use super::{RESEND_WAIT, SHORT_WAIT, Warmer, tags};
use crate::agenda::{Next, keep};
use crate::entry::Validators;
use crate::entry::{EntryKey, Outcome, Recheck, Trigger, excerpt, hash};
use crate::job::Job;
use crate::redis::RedisTime;
use crate::source::Answer;
use crate::store::{Expiry, LastAttempt, Lease, META_OUTLIVES, Meta, Removal, Written};

impl Attempt<'_> {
    /// Returns the first round under a lease.
    pub(super) fn first_round(&self, lease: &Lease) -> Round {
        // Whatever made the entry due, its fetch answers an open invalidation. A recheck follows then.
        let trigger = match &lease.before.meta {
            Some(meta) if meta.invalidated.is_some() => Trigger::Invalidation,
            _ => self.entry.trigger,
        };
        Round {
            trigger,
            storm: is_storm(lease, trigger),
            may_keep: true,
            is_again: false,
            may_remove: false,
            indexed: Vec::new(),
        }
    }

    /// Returns the validators of the present value, where it may be kept in this round.
    pub(super) fn known(&self, lease: &Lease, round: &Round) -> Option<Validators> {
        if round.may_keep { known(self.job, lease) } else { None }
    }

    /// Writes an answer under the lease; returns how the attempt ends, or `None` where the entry is to be fetched again
    /// under the same lease.
    pub(super) async fn commit(
        &mut self,
        lease: &mut Lease,
        round: &mut Round,
        answer: &Answer,
        known: Option<Validators>,
    ) -> Step<Option<Ending>> {
        let last_attempt = self.last_attempt(lease, round, answer, known).await?;
        if let Answer::Gone = answer {
            self.guard_removal(lease, round).await?;
        }
        let written = self.write(lease, answer, &last_attempt, &round.indexed).await?;
        let is_leased =
            matches!(written, Written::Again(_) | Written::Foreign | Written::Behind(..) | Written::Older { .. });
        if !is_leased {
            // The lease has ended with the commit, or was lost before.
            self.token = None;
        }
        Ok(match written {
            Written::Done { changed, .. } if last_attempt.outcome == Some(Outcome::Gone) => {
                Some(self.gone(lease, last_attempt, changed).await?)
            }
            Written::Done { expiry, changed, behind } => {
                let ending = self.committed(lease, round, answer, &last_attempt, expiry, changed).await?;
                Some(match behind {
                    Some(behind) => self.stored_behind(lease, ending, last_attempt.version, behind),
                    None => ending,
                })
            }
            Written::Behind(announced, behind) => {
                return Err(self.behind(lease, last_attempt.version, announced, behind));
            }
            Written::Older { stored, invalidated } => {
                return Err(self.older(lease, &last_attempt, stored, invalidated));
            }
            Written::Again(start) => {
                round.indexed.extend(last_attempt.tags);
                self.begin_again(lease, round, start).await?;
                None
            }
            Written::Foreign => {
                round.may_keep = false;
                None
            }
            Written::WrongType => Some(Ending::wrong_type("something else than a string")),
            Written::Evicted => {
                let next = self.warmer.next_after_foreign(self.job, &self.entry.key, lease.fetched_at).await?;
                Some(Ending::because(Outcome::Fenced, next, "evicted or overwritten while it was fetched"))
            }
            Written::Lost => {
                let reason = "the lease ended before the answer came";
                Some(Ending::because(Outcome::Fenced, Next::In(SHORT_WAIT), reason))
            }
        })
    }

    /// Returns what the metadata note of an answer. Tags that cannot be rendered fail the fetch.
    async fn last_attempt(
        &self,
        lease: &Lease,
        round: &Round,
        answer: &Answer,
        known: Option<Validators>,
    ) -> Step<LastAttempt> {
        let before = lease.before.meta.as_ref().map(|meta| &meta.last_attempt);
        let present = lease.before.ours().map_or("-", |meta| meta.hash.as_str());
        let content = match answer {
            Answer::Value(fetched) => &hash(&fetched.json),
            Answer::Unchanged => present,
            Answer::Gone => "-",
        };
        let failed = |reason| Stop::NoValue(Ending::because(Outcome::Failed, Next::Out, reason));
        let version = match answer {
            Answer::Value(fetched) => {
                render_version(self.job, &self.params, &self.inputs, || fetched.value()).map_err(failed)?
            }
            Answer::Unchanged => before.and_then(|before| before.version),
            Answer::Gone => None,
        };
        let last_attempt = LastAttempt {
            trigger: Some(round.trigger),
            storm: round.storm,
            rechecks: match &self.gone_input {
                Some(_) => None,
                None => self.rechecks_to_come(lease, round, content, version).await?,
            },
            version,
            ..LastAttempt::default()
        };
        Ok(match answer {
            Answer::Value(fetched) => {
                let tags = tags::render(self.job, &self.params, &self.inputs, || fetched.value());
                LastAttempt {
                    validators: fetched.validators.clone(),
                    tags: tags.map_err(failed)?,
                    made: Some(self.job.made.clone()),
                    tokens: fetched.tokens,
                    outcome: Some(Outcome::Warmed),
                    ..last_attempt
                }
            }
            Answer::Unchanged => {
                let key = &self.entry.key;
                let tags = self.warmer.tags_kept(self.job, key, &self.params, &self.inputs, before).await?;
                LastAttempt {
                    validators: known.unwrap_or_default(),
                    tags: tags.map_err(failed)?,
                    made: Some(self.job.made.clone()),
                    tokens: before.map(|last_attempt| last_attempt.tokens).unwrap_or_default(),
                    outcome: Some(Outcome::Unchanged),
                    ..last_attempt
                }
            }
            Answer::Gone => {
                let validators = Validators { prompt: Some(self.job.requests.clone()), ..Validators::default() };
                let gone = LastAttempt { validators, outcome: Some(Outcome::Gone), ..last_attempt };
                match &self.gone_input {
                    Some(input) => LastAttempt {
                        reason: Some(excerpt(&format!("its input {input} is gone"), LONGEST_REASON)),
                        gone_with: Some(input.as_str().to_owned()),
                        had_value: lease.before.has_value() || before.is_some_and(|before| before.had_value),
                        ..gone
                    },
                    None => gone,
                }
            }
        })
    }

    /// Writes an answer, and tries until the lease's deadline: an answer, perhaps paid for, is not dropped because
    /// Redis was away for a moment. Where only the reply to a write was lost, the next try finds the lease gone, and
    /// the entry is found fresh when it comes back.
    async fn write(
        &self,
        lease: &Lease,
        answer: &Answer,
        last_attempt: &LastAttempt,
        indexed: &[String],
    ) -> RedisResult<Written> {
        let (warmer, job, key) = (self.warmer, self.job, &self.entry.key);
        loop {
            // First the tags: an invalidation by one of them either finds the entry, or has left its stamp before.
            let tagged = warmer.index(job, key, lease, asked_at(job, lease, answer), &last_attempt.tags, indexed).await;
            let tried = match answer {
                _ if tagged.is_err() => tagged.map(|()| Written::Lost),
                Answer::Value(fetched) => warmer.store.commit(key, lease, &fetched.json, job.ttl, last_attempt).await,
                Answer::Unchanged if job.may_hold_unasked() => {
                    warmer.store.extend_unasked(key, lease, job.ttl, last_attempt).await
                }
                Answer::Unchanged => warmer.store.extend(key, lease, job.ttl, last_attempt).await,
                Answer::Gone => self.write_gone(lease, last_attempt).await,
            };
            match tried {
                Err(_) if Instant::now() + RESEND_WAIT < lease.deadline => tokio::time::sleep(RESEND_WAIT).await,
                done => return done,
            }
        }
    }

    /// Removes the value of an entry that is gone. If that is because of an input, the input's return finds the entry
    /// as long as its metadata say so.
    async fn write_gone(&self, lease: &Lease, last_attempt: &LastAttempt) -> RedisResult<Written> {
        let (store, key) = (&self.warmer.store, &self.entry.key);
        if self.gone_input.is_some() {
            let inputs = self.job.inputs_of_many(&self.params);
            store.add_dependant(key, &inputs, lease.time + META_OUTLIVES).await?;
        }
        store.gone(key, lease, last_attempt).await
    }

    /// Ends an attempt whose value is readable until `expiry`: takes the entry off the tags that it has lost, and
    /// makes due what is made from it.
    async fn committed(
        &self,
        lease: &Lease,
        round: &Round,
        answer: &Answer,
        last_attempt: &LastAttempt,
        expiry: Expiry,
        changed: bool,
    ) -> RedisResult<Ending> {
        let (warmer, job, entry) = (self.warmer, self.job, self.entry);
        if let Answer::Unchanged = answer {
            warmer.count_saved(job, last_attempt);
        }
        let before = lease.before.meta.as_ref().map(|meta| meta.last_attempt.tags.as_slice()).unwrap_or_default();
        let lost = before.iter().chain(&round.indexed).filter(|tag| !last_attempt.tags.contains(tag));
        let lost: Vec<String> = lost.cloned().collect();
        warmer.store.untag(&entry.key, &lost, lease.fetched_at + warmer.indexed_for(job, lease)).await?;
        if changed {
            warmer.wake_dependants(&entry.key, entry.priority).await?;
        } else {
            if let Some(before) = &lease.before.meta {
                warmer.wake_outdated(&entry.key, before.content_since).await?;
            }
            let had_expired = !lease.before.has_value();
            if had_expired || entry.trigger == Trigger::Demand || round.trigger == Trigger::Invalidation {
                // It had expired, or was invalidated, and its content is the one of before.
                warmer.wake_waiting(&entry.key).await?;
            }
        }
        self.note_recovery(lease).await?;
        self.found_value(lease, round, changed);
        let written_at = expiry.at().map_or(lease.fetched_at, |at| at - job.ttl);
        let after = if job.may_lag() { self.rechecked_from(lease) } else { written_at };
        let keep = keep(job, &entry.key, expiry);
        let next = with_recheck(job, last_attempt.rechecks.as_ref(), after, keep);
        Ok(Ending::new(last_attempt.outcome.unwrap_or(Outcome::Warmed), next))
    }

    /// Ends an attempt whose entry is gone: makes due what is made from it. `had_value` tells that a value was removed.
    async fn gone(&self, lease: &Lease, last_attempt: LastAttempt, had_value: bool) -> RedisResult<Ending> {
        let (warmer, job, key) = (self.warmer, self.job, &self.entry.key);
        let before = lease.before.meta.as_ref().filter(|_| !had_value);
        match before.and_then(Meta::gone_since) {
            // It was gone before. The worker that found that may have crashed before it woke the dependants.
            Some(since) => {
                warmer.wake_outdated(key, since).await?;
                warmer.wake_waiting(key).await?;
            }
            None => warmer.wake_dependants_of_gone(key, self.entry.priority).await?,
        }
        if let Some(reason) = last_attempt.reason {
            return Ok(Ending::because(Outcome::Gone, Next::Out, reason));
        }
        self.found(Recheck::Gone);
        let next = with_recheck(job, last_attempt.rechecks.as_ref(), self.rechecked_from(lease), Next::Out);
        Ok(Ending::because(Outcome::Gone, next, "the upstream no longer has it"))
    }

    /// Returns the time from which rechecks are counted: the same for entries that were asked for together.
    fn rechecked_from(&self, lease: &Lease) -> RedisTime {
        self.pace.map_or(lease.fetched_at, |pace| pace.last.max(lease.fetched_at))
    }

    /// Prepares another round, since an invalidation came during this one: the lease was begun anew at `start`. Ends
    /// the attempt where an input is to be fetched first.
    async fn begin_again(&mut self, lease: &mut Lease, round: &mut Round, start: RedisTime) -> Step<()> {
        let (warmer, job) = (self.warmer, self.job);
        round.trigger = Trigger::Invalidation;
        round.storm = true;
        round.is_again = true;
        lease.begin_again(start);
        if warmer.awaited_input(job, &self.params, start).await?.is_some() {
            return Err(Stop::End(Ending::overtaken()));
        }
        if self.read_inputs(start).await?.is_some() {
            return Err(Stop::End(Ending::overtaken()));
        }
        // The invalidation says that a value made from the same prompt does not hold any more.
        round.may_keep &= !job.may_hold_unasked();
        Ok(())
    }
}

impl Warmer {
    /// Indexes an entry under its tags. Where an invalidation by one of them came since its content was asked for at
    /// `asked`, marks what is older: the lease, or the value that is to be extended. `indexed` are the tags of earlier
    /// rounds under the same lease.
    async fn index(
        &self,
        job: &Job,
        key: &EntryKey,
        lease: &Lease,
        asked: RedisTime,
        tags: &[String],
        indexed: &[String],
    ) -> RedisResult<()> {
        if tags.is_empty() {
            return Ok(());
        }
        // An invalidation finds entries that had the tag before; in a storm it is held off while this fetch lands.
        let had = lease.before.ours();
        let finds =
            |tag: &String| indexed.contains(tag) || had.is_some_and(|meta| meta.last_attempt.tags.contains(tag));
        let stamps = self.store.tag(key, tags, self.indexed_for(job, lease)).await?;
        let stamps = tags.iter().zip(stamps).filter_map(|(tag, stamp)| {
            stamp.filter(|stamp| stamp.at >= asked && (stamp.removal == Removal::Evict || !finds(tag)))
        });
        match stamps.max_by_key(|stamp| stamp.at) {
            Some(stamp) => self.store.fence(key, stamp).await,
            None => Ok(()),
        }
    }

    /// Returns how long an entry stays in the index of its tags: longer than its value lives.
    fn indexed_for(&self, job: &Job, lease: &Lease) -> Duration {
        job.ttl + job.warm.stale_if_error + lease.time
    }

    /// Counts what an unchanged value saved.
    fn count_saved(&self, job: &Job, last_attempt: &LastAttempt) {
        let saved = (job.sources[0].properties().saves)(last_attempt.tokens);
        self.usage.add(&job.name, saved);
    }
}

/// Returns when the content of an answer was asked for. A value kept without a request keeps its time.
fn asked_at(job: &Job, lease: &Lease, answer: &Answer) -> RedisTime {
    match answer {
        Answer::Unchanged if job.may_hold_unasked() => {
            lease.before.meta.as_ref().map_or(lease.fetched_at, |meta| meta.fetched_at)
        }
        Answer::Value(_) | Answer::Unchanged | Answer::Gone => lease.fetched_at,
    }
}
