//! The requests of a group: one, or several if that one is too long, is refused, or its answer leaves entries out.
//!
//! Parts are asked for in turn, the larger ones first, each under a permit of its own: so after three requests, half of
//! a group with one unusable entry is answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::group::{Unanswered, Waiting};
use super::sizes::Sizes;
use crate::agenda::{Next, Pace};
use crate::entry::{Outcome, Priority};
use crate::job::Job;
use crate::source::{Cost, Ended, FetchError, Gate, Many, Part, Permit, Sources};
use crate::warmer::SHORT_WAIT;
use crate::warmer::admission::pass;
use crate::warmer::ending::Ending;

/// The most requests of a group that are refused before one is answered: for all, for the halves and for the quarters.
/// Then the cause is not one of the entries.
const MOST_REFUSED: usize = 7;

/// Asks a source for many entries of a job.
pub(super) struct Asker {
    pub(super) job: Arc<Job>,
    pub(super) source: usize,
    pub(super) timeout: Duration,
    pub(super) sources: Sources,
    pub(super) gate: Arc<Gate>,
    pub(super) drain: CancellationToken,
    pub(super) sizes: Sizes,
}

/// The requests of a group that are still to be made.
struct Requests<'a> {
    asker: &'a Asker,
    priority: Priority,
    /// The permit of the first one.
    permit: Option<Permit>,
    parts: VecDeque<Vec<Waiting>>,
    /// The number of refused ones, as long as none is answered.
    refused: usize,
    pace: Pace,
}

/// The end of a request for a part.
enum Said {
    Answer(Vec<Part>),
    /// The request cannot be made for so many, perhaps because of one of them.
    Divided,
    /// The upstream refuses it, perhaps because of one of the entries, for this reason.
    Refused(FetchError),
    /// The answer is of no use for this part.
    Failed(FetchError),
    /// Neither this part nor another one is answered now.
    Over(Unanswered),
}

impl Asker {
    /// Waits for a permit.
    pub(super) async fn pass(&self, priority: Priority, until: Instant) -> Result<Permit, Ending> {
        let is_last = self.source + 1 == self.job.sources.len();
        pass(&self.gate, &self.drain, is_last, Cost::default(), priority, until).await
    }

    /// Waits for another permit of the same group. The time left must suffice for the answer.
    async fn pass_again(&self, priority: Priority, until: Instant) -> Result<Permit, Ending> {
        if Instant::now() < until {
            return self.pass(priority, until).await;
        }
        let reason = "the requests for entries that were to be asked for with it took too long";
        Err(Ending::because(Outcome::Deferred, Next::In(SHORT_WAIT), reason))
    }

    /// Asks for these entries, and tells each its part of the answer.
    pub(super) async fn ask(&self, wanted: Vec<Waiting>, permit: Permit, priority: Priority) {
        let last = wanted.iter().map(|(wanted, _)| wanted.fetched_at).max().unwrap_or_default();
        let pace = Pace { last, told: Instant::now(), draw: rand::random() };
        let parts = VecDeque::from([wanted]);
        let mut requests = Requests { asker: self, priority, permit: Some(permit), parts, refused: 0, pace };
        while let Some(part) = requests.parts.pop_front() {
            requests.ask_for(part).await;
        }
        if let Some(permit) = requests.permit {
            permit.done(Ended::Unused).await;
        }
    }
}

impl Requests<'_> {
    /// Asks for a part, and tells its members, or notes what is to be asked for in its place.
    async fn ask_for(&mut self, mut part: Vec<Waiting>) {
        part.retain(|(_, told)| !told.is_closed());
        part.sort_by(|(one, _), (other, _)| one.params.cmp(&other.params));
        let Some(deadline) = part.iter().map(|(wanted, _)| wanted.deadline).min() else { return };
        match self.request(&part, deadline).await {
            Said::Answer(answer) => self.tell_answer(part, answer),
            Said::Divided => self.divide(part),
            Said::Refused(error) => {
                self.refused += 1;
                self.divide(part);
                if self.refused == MOST_REFUSED {
                    self.tell_rest(&Unanswered::Failed(error));
                }
            }
            Said::Failed(error) => {
                part.iter().for_each(|(wanted, _)| self.asker.sizes.forget(&wanted.params));
                self.tell(part, &Unanswered::Failed(error));
            }
            Said::Over(error) => {
                self.parts.push_back(part);
                self.tell_rest(&error);
            }
        }
    }

    async fn request(&mut self, part: &[Waiting], deadline: Instant) -> Said {
        let Asker { sources, job, source, sizes, timeout, .. } = self.asker;
        let entries: Vec<_> = part.iter().map(|(wanted, _)| (&wanted.params, &wanted.inputs)).collect();
        let request = match sources.request_many(job, *source, &entries) {
            Ok(request) => request,
            Err(error) if entries.len() == 1 => return Said::Failed(error),
            Err(_) => return Said::Divided,
        };
        sizes.measure(entries.len(), request.url_length());
        if request.is_too_long() {
            return Said::Divided;
        }
        let admitted = match self.permit.take() {
            Some(permit) => Ok(permit),
            None => self.asker.pass_again(self.priority, deadline - *timeout).await,
        };
        let permit = match admitted {
            Ok(permit) => permit,
            Err(ending) => return Said::Over(Unanswered::Refused(ending)),
        };
        let Many { parts, is_divisible } = sources.fetch_many(&request, permit, deadline).await;
        match parts {
            Ok(parts) => Said::Answer(parts),
            Err(error) if is_divisible => Said::Refused(error),
            // It is ill, or asks to wait: it is not asked for the other parts now.
            Err(error @ (FetchError::Upstream(_) | FetchError::Busy(..) | FetchError::Refused(..))) => {
                Said::Over(Unanswered::Failed(error))
            }
            Err(error) => Said::Failed(error),
        }
    }

    /// Tells each of these members its part of an answer. Those that the answer leaves out are asked for again.
    fn tell_answer(&mut self, part: Vec<Waiting>, answer: Vec<Part>) {
        self.refused = 0;
        let pace = Pace { told: Instant::now(), ..self.pace };
        let mut left_out = Vec::new();
        for ((wanted, told), part) in part.into_iter().zip(answer) {
            if part.is_left_out() {
                left_out.push((wanted, told));
                continue;
            }
            self.asker.sizes.forget(&wanted.params);
            // A member that was cancelled hears nothing.
            let _ = told.send((Ok(part), pace));
        }
        self.again(left_out);
    }

    /// Asks for the halves of a part instead.
    fn divide(&mut self, mut part: Vec<Waiting>) {
        let half = part.split_off(part.len() / 2);
        self.again(part);
        self.again(half);
    }

    /// Asks for a smaller part of the group. Whatever happens to its entries now, the next request for them asks for no
    /// more.
    fn again(&mut self, part: Vec<Waiting>) {
        if !part.is_empty() {
            self.asker.sizes.keep(part.iter().map(|(wanted, _)| &wanted.params));
            self.parts.push_back(part);
        }
    }

    fn tell_rest(&mut self, error: &Unanswered) {
        std::mem::take(&mut self.parts).into_iter().for_each(|part| self.tell(part, error));
    }

    fn tell(&self, part: Vec<Waiting>, error: &Unanswered) {
        let pace = Pace { told: Instant::now(), ..self.pace };
        for (_, told) in part {
            let _ = told.send((Err(error.clone()), pace));
        }
    }
}
