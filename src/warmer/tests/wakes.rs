//! An input that returns while an attempt finds it missing: both in each order in which Redis may run their commands.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use super::*;
use crate::entry::Validators;

impl Bench {
    /// Lets a future send so many commands, or read their replies; returns true if it has ended.
    async fn steps(&self, steps: usize, mut of: Pin<&mut impl Future<Output = ()>>) -> bool {
        for _ in 0..steps {
            if poll_fn(|cx| Poll::Ready(of.as_mut().poll(cx).is_ready())).await {
                return true;
            }
            // All share one connection: after this reply, those to the future's commands have arrived.
            self.ask::<String>(&["PING"]).await;
        }
        false
    }

    /// Makes an attempt at an entry, and ends it on the agenda.
    async fn attempt_and_finish(&self, job: &Arc<Job>, entry: &Running) {
        let Ending { outcome, next, .. } = self.warmer.attempt(job, entry).await;
        self.warmer.in_flight.end(&entry.place(job));
        let (key, score) = (entry.key.as_str().to_owned(), entry.score.clone());
        let finished = Finished { key, score, next, outcome: Some(outcome) };
        self.agenda.finish(&job.name, &[finished], "").await.unwrap();
    }

    /// Notes that the upstream of the job `art` does not have an entry.
    async fn lose(&self, key: &EntryKey) {
        let prompt = Some(self.jobs.jobs["art"].requests.clone());
        let validators = Validators { prompt, ..Validators::default() };
        let gone = LastAttempt { validators, outcome: Some(Outcome::Gone), ..LastAttempt::default() };
        let lease = self.lease(key.as_str()).await;
        self.store.gone(key, &lease, &gone).await.unwrap();
    }

    /// Notes that the fetches of an entry failed so often.
    async fn fail(&self, key: &EntryKey, failures: u32) {
        let lease = self.lease(key.as_str()).await;
        let outcome = Some(Outcome::Failed);
        let failed = LastAttempt { outcome, failures, attempted: lease.fetched_at, ..LastAttempt::default() };
        self.store.release(key, &lease.token, Some(&failed)).await.unwrap();
    }

    /// Writes an entry's value as another worker, and wakes what is made from it.
    async fn commit_and_wake(&self, key: &EntryKey) {
        let lease = self.lease(key.as_str()).await;
        let warmed = LastAttempt { outcome: Some(Outcome::Warmed), ..LastAttempt::default() };
        self.store.commit(key, &lease, "1", LONG, &warmed).await.unwrap();
        self.warmer.wake_dependants(key, Priority::Normal).await.unwrap();
    }
}

/// Makes an attempt at a story whose input returns meanwhile, until each order was tried, and asserts that none loses
/// the story; returns how many stories are not made by then. `prepare` is called before each, with the input and the
/// story.
///
/// The attempt is interrupted after so many steps, and then the input's worker after so many; the attempt goes on
/// first.
async fn try_each_order(prepare: impl AsyncFn(&Bench, &EntryKey, &EntryKey)) -> usize {
    let mut bench = Bench::start().await;
    let (_, none) = mpsc::unbounded_channel();
    let mut requests = std::mem::replace(&mut bench.requests, none);
    let mut upstream = JoinSet::new();
    upstream.spawn(async move {
        while let Some(request) = requests.recv().await {
            let _ = request.send(reply(200, "{}"));
        }
    });
    let (mut left, mut before, mut has_ended) = (0, 0, false);
    while !has_ended {
        let (mut meanwhile, mut has_woken) = (0, false);
        while !has_woken {
            let name = format!("{before}-{meanwhile}");
            let (input, story) = (EntryKey::new(format!("art:{name}")), EntryKey::new(format!("story:{name}")));
            prepare(&bench, &input, &story).await;
            let (job, entry) = bench.take("story", &name, Trigger::Cron).await;
            let mut attempt = pin!(bench.attempt_and_finish(&job, &entry));
            let mut commit = pin!(bench.commit_and_wake(&input));
            has_ended = bench.steps(before, attempt.as_mut()).await;
            has_woken = bench.steps(meanwhile, commit.as_mut()).await;
            if !has_ended {
                attempt.await;
            }
            if !has_woken {
                commit.await;
            }
            let score = bench.agenda.scores(&job.name, std::slice::from_ref(&story)).await.unwrap().remove(0);
            let is_due = score.is_some_and(|score| score != entry.score);
            let is_made = bench.store.snapshot(&story).await.unwrap().has_value();
            assert!(is_due || is_made, "lost after {before} steps of the attempt, {meanwhile} of the input's commit");
            left += usize::from(!is_made);
            meanwhile += 1;
        }
        before += 1;
    }
    left
}

/// A story that has not gone with its input before has metadata that name the input only once it has.
#[tokio::test]
async fn an_input_that_returns_wakes_what_goes_with_it_meanwhile() {
    let gone = try_each_order(async |bench, input, _| bench.lose(input).await).await;
    assert!(gone > 0, "no story has gone with its input");
}

#[tokio::test]
async fn an_input_that_returns_wakes_what_went_with_it_before() {
    let gone = try_each_order(async |bench, input, story| {
        bench.lose(input).await;
        let (job, entry) = bench.take("story", &story.as_str()["story:".len()..], Trigger::Cron).await;
        bench.attempt_and_finish(&job, &entry).await;
    })
    .await;
    assert!(gone > 0, "no story has gone with its input");
}

#[tokio::test]
async fn an_input_that_returns_wakes_what_is_given_up_meanwhile() {
    let given_up = try_each_order(async |bench, input, story| {
        bench.fail(input, bench.jobs.jobs["art"].warm.attempts).await;
        bench.fail(story, bench.jobs.jobs["story"].warm.attempts - 1).await;
    })
    .await;
    assert!(given_up > 0, "no story is given up");
}
