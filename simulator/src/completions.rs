//! The model, which writes stories: chat completions that cost tokens.

use std::time::Duration;

use serde_json::{Value, json};

use crate::check;
use crate::files::Job;
use crate::machine;
use crate::upstream::Asked;
use crate::world::{Call, World};

/// The tokens of a request: its prompt and its answer.
const COST: (u64, u64) = (20, 30);
/// The time within which a message may reach all workers.
const TOLD: Duration = Duration::from_secs(20);
/// The time within which a worker notices that Redis stopped or lost data.
const NOTICED: Duration = Duration::from_secs(60);

/// The text that a story is made from, and the contents of the story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) name: String,
    pub(crate) revision: u64,
    pub(crate) file: u32,
}

impl Prompt {
    /// Reads a request's body.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let mut words = body["messages"][0]["content"].as_str()?.split(' ');
        Some(Self {
            name: words.next()?.to_owned(),
            revision: words.next()?.parse().ok()?,
            file: words.next()?.parse().ok()?,
        })
    }

    /// Reads a story; returns the number of its request as well.
    pub(crate) fn of(story: &str) -> Option<(Self, usize)> {
        let story: Value = serde_json::from_str(story).ok()?;
        let prompt = Self {
            name: story["of"].as_str()?.to_owned(),
            revision: story["rev"].as_u64()?,
            file: u32::try_from(story["file"].as_u64()?).ok()?,
        };
        Some((prompt, usize::try_from(story["n"].as_u64()?).ok()?))
    }
}

impl World {
    /// Answers a request for a story.
    pub(crate) fn complete(&mut self, prompt: &Prompt) -> Asked {
        let Prompt { name, revision, file } = prompt;
        let number = self.calls.len();
        self.is_not_paid_twice(prompt);
        self.is_within_budget(name);
        self.calls.push(Call { arrived: machine::elapsed() });
        let takes = self.takes();
        let answer = self.failure().unwrap_or_else(|| {
            let story = json!({"of": name, "rev": revision, "file": file, "n": number}).to_string();
            let (asked, told) = COST;
            let completion = json!({
                "choices": [{"message": {"content": story}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": asked, "completion_tokens": told},
            });
            Some((200, vec![], completion.to_string().into_bytes()))
        });
        // Only an answer with the status of an error costs nothing.
        if answer.as_ref().is_none_or(|(status, ..)| *status == 200) {
            self.spent += COST.0 + COST.1;
        }
        self.tell(format!("model      writes #{number} {prompt:?}: {}", answer.is_some()));
        Asked { number, takes, answer }
    }

    /// Checks that no story is paid for again while its prompt is unchanged and no message names it.
    fn is_not_paid_twice(&mut self, prompt: &Prompt) {
        let key = Job::Story.key(&prompt.name);
        let named = self.named.get(&key).copied().unwrap_or_default();
        let Some((present, number)) = self.made.get(&key).and_then(|made| Prompt::of(&made.text)) else { return };
        let Some(arrived) = self.calls.get(number).map(|call| call.arrived) else { return };
        let is_named = named.pending > 0 || named.last > Duration::ZERO && named.last + TOLD >= arrived;
        let is_disturbed = self.disturbed.is_some_and(|at| at + NOTICED >= arrived);
        if present == *prompt && self.plan.all_beat() && !is_named && !is_disturbed {
            self.violated(check::PAID_ONCE, format!("{key} is there, made from {prompt:?} by #{number}"), &key);
        }
    }

    /// Checks that what was spent before this request is within the budget.
    fn is_within_budget(&mut self, name: &str) {
        let Some(most) = self.plan.tokens.and_then(|tokens| tokens.most) else { return };
        // A dead worker's requests are not counted; one that counts as dead still makes some.
        let lost = self.counts.deaths + if self.plan.all_beat() { 0 } else { 2 };
        let most = most + lost * self.items.len() as u64 * (COST.0 + COST.1);
        if self.spent > most {
            let told = format!("{} tokens are spent, and there is a request for {name}", self.spent);
            self.violated(check::BUDGET, told, "model");
        }
    }

    /// Returns true if the budget may be spent, so that stories stay as they are.
    pub(crate) fn has_spent_all(&self) -> bool {
        // A request is admitted for the most that it may cost.
        let most = self.plan.tokens.and_then(|tokens| tokens.most);
        most.is_some_and(|most| self.spent + 4 * (COST.0 + COST.1) > most)
    }
}
