//! Actions: each shows first what it concerns, and asks; then it is noted in the audit log, and carried out.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::fields::{Asked, Fields};
use super::page::{Failure, Page, Screen, Tab, query, text, unknown};
use crate::admin::warm_due;
use crate::ops::audit_log::Change;
use crate::ops::words::grouped;
use crate::ops::{DryRun, Plan};
use crate::protocol::{Action as MessageAction, Message};
use crate::redis::requirements::explain;
use crate::trigger::invalidation::inbox;

/// The time that counting what an action concerns may take.
const COUNTING: Duration = Duration::from_secs(5);
const TOO_MANY: &str = "It concerns more entries than can be counted in 5 seconds. The action does not wait for that.";

/// An action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Warm,
    Pause,
    Resume,
    Invalidate,
    Evict,
    Retry,
}

/// The job or the key that an action concerns.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Target {
    job: String,
    key: String,
    /// A pattern of keys, or a tag; only for invalidations.
    pattern: String,
    tag: String,
    /// The cause that the dead letters share; only for a retry.
    cause: String,
    /// Why; only for a pause.
    note: String,
}

impl Action {
    const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::Warm, "warm", "Fetch what is missing"),
        (Self::Pause, "pause", "Pause"),
        (Self::Resume, "resume", "Resume"),
        (Self::Invalidate, "invalidate", "Refresh"),
        (Self::Evict, "evict", "Remove values"),
        (Self::Retry, "retry", "Try again"),
    ];

    fn read(name: &str) -> Result<Self, Failure> {
        let found = Self::ALL.into_iter().find(|(_, known, _)| *known == name).map(|(action, _, _)| action);
        found.ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, "No such action", format!("There is no `{name}`.")))
    }

    fn words(self) -> (&'static str, &'static str) {
        let found = Self::ALL.into_iter().find(|(action, ..)| *action == self);
        found.map(|(_, name, words)| (name, words)).unwrap_or_default()
    }

    /// Returns `true` if values or work may be lost.
    fn is_dangerous(self) -> bool {
        matches!(self, Self::Evict)
    }

    fn message(self, target: &Target) -> Message {
        let action = if self == Self::Evict { MessageAction::Evict } else { MessageAction::Refresh };
        let named = |name: &str| if name.is_empty() { Vec::new() } else { vec![name.to_owned()] };
        let Target { job, key, pattern, tag, .. } = target;
        let (keys, patterns, tags, jobs) = (named(key), named(pattern), named(tag), named(job));
        Message { keys, patterns, tags, jobs, action, ..Message::default() }
    }
}

impl Target {
    /// Returns the name of what it concerns, with its kind where that is neither a key nor a job.
    fn name(&self) -> String {
        match (self.key.as_str(), self.pattern.as_str(), self.tag.as_str()) {
            ("", "", "") => self.job.clone(),
            ("", "", tag) => format!("tag {tag}"),
            ("", pattern, _) => format!("pattern {pattern}"),
            (key, ..) => key.to_owned(),
        }
    }

    /// Returns the screen of what it concerns.
    fn url(&self, action: Action) -> String {
        match (action, self.key.as_str()) {
            (Action::Retry, _) => format!("/console/dead?job={}", query(&self.job)),
            (_, "") if self.job.is_empty() => "/console/invalidations".to_owned(),
            (_, "") => format!("/console/jobs/{}", self.job),
            (_, key) => format!("/console/entry?key={}", query(key)),
        }
    }

    /// Checks that it names either a job or a key, as the action asks for, and that there is such a one.
    fn check(&self, action: Action, screen: &Screen) -> Result<(), Failure> {
        let is_of_job = matches!(action, Action::Pause | Action::Resume | Action::Retry);
        if !self.key.is_empty() && (is_of_job || !self.job.is_empty()) {
            let detail = "Name a job, or a key of a job; this action concerns one of them.";
            return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Two things are named", detail));
        }
        if !self.pattern.is_empty() || !self.tag.is_empty() {
            let is_invalidation = matches!(action, Action::Invalidate | Action::Evict);
            let refuse = |why: String| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Not understood", why);
            let others =
                [&self.key, &self.job, &self.pattern, &self.tag].iter().filter(|name| !name.is_empty()).count();
            if !is_invalidation || others > 1 {
                return Err(refuse("A pattern or a tag can be refreshed or evicted, and stands alone.".to_owned()));
            }
            return action.message(self).checked().map(drop).map_err(|e| refuse(e.to_string()));
        }
        let jobs = &screen.parts.ops.jobs;
        match self.key.as_str() {
            "" if jobs.jobs.contains_key(self.job.as_str()) => Ok(()),
            "" => Err(unknown(&self.job)),
            key if jobs.owner(key).is_some() => Ok(()),
            key => {
                let detail = format!("No job of this worker has the key `{key}`.");
                Err(Failure::new(StatusCode::NOT_FOUND, "No such entry", detail))
            }
        }
    }
}

/// Shows what an action concerns, and asks.
pub(super) async fn ask(
    screen: Screen,
    Path(name): Path<String>,
    Asked(target): Asked<Target>,
) -> Result<impl IntoResponse, Failure> {
    let action = Action::read(&name)?;
    target.check(action, &screen)?;
    let effect = match tokio::time::timeout(COUNTING, count(&screen, action, &target)).await {
        Ok(effect) => effect?,
        Err(_) => vec![TOO_MANY.to_owned()],
    };
    let (_, words) = action.words();
    let title = format!("{words}: {}", text(&target.name()));
    Ok(screen.page(&Page { tab: Tab::Jobs, title, as_of: None, is_live: false }, &question(action, &target, &effect)))
}

fn question(action: Action, target: &Target, effect: &[String]) -> Markup {
    let (name, words) = action.words();
    html! {
        ul { @for said in effect { li { (text(said)) } } }
        form method="post" action=(format!("/console/do/{name}")) {
            @let Target { job, key, pattern, tag, cause, .. } = target;
            @for (field, value) in
                [("job", job), ("key", key), ("pattern", pattern), ("tag", tag), ("cause", cause)] {
                @if !value.is_empty() { input type="hidden" name=(field) value=(value); }
            }
            @if action == Action::Pause {
                p { label for="note" { "Why, for those who wonder" } " "
                    input #note type="text" name="note" maxlength="200"; }
            }
            div.actions {
                button.primary.danger[action.is_dangerous()] type="submit" { (words) }
                a.button href=(target.url(action)) { "Back" }
            }
        }
    }
}

/// Counts what an action concerns, as sentences.
async fn count(screen: &Screen, action: Action, target: &Target) -> Result<Vec<String>, Failure> {
    let ops = &screen.parts.ops;
    let name = target.name();
    Ok(match action {
        Action::Warm if target.key.is_empty() => {
            let Some(job) = ops.jobs.jobs.get(name.as_str()) else { return Err(unknown(&name)) };
            let page = ops.absent(job, 0, None, |_, _| ()).await?;
            let [missing, wanted] = [page.total, page.wanted].map(|count| grouped(count as u64));
            let limits = "they are fetched within the limits of their upstreams";
            vec![format!("{missing} of {wanted} wanted entries have no value; {limits}.")]
        }
        Action::Warm => vec!["The entry is fetched before all other work, if it has no value.".to_owned()],
        Action::Pause => vec![
            "Nothing of this job is fetched in the whole fleet until it is resumed.".to_owned(),
            "Values stay until their TTL ends. What is in flight finishes.".to_owned(),
        ],
        Action::Resume => vec!["Entries that are due by now are fetched.".to_owned()],
        Action::Invalidate | Action::Evict => {
            let effect = ops.of_fleet().await?.dry_run(&action.message(target)).await?;
            effect_of(action, &effect)
        }
        Action::Retry => {
            let letters = screen.letters(target).await?;
            let entries = match letters.len() {
                1 => "1 entry is".to_owned(),
                many => format!("{} entries are", grouped(many as u64)),
            };
            vec![format!("{entries} tried again at once, with all attempts: {}", target.cause)]
        }
    })
}

fn effect_of(action: Action, effect: &DryRun) -> Vec<String> {
    let jobs: &BTreeMap<String, Plan> = &effect.effect.jobs;
    let mut said: Vec<String> = jobs
        .iter()
        .map(|(job, plan)| {
            let [entries, fetches, calls] =
                [plan.entries, plan.fetches, plan.ai_calls].map(|count| grouped(count as u64));
            match action {
                Action::Evict => format!("{job}: the values of {entries} entries are removed at once."),
                _ => format!("{job}: {entries} entries, {fetches} requests and {calls} AI calls at most."),
            }
        })
        .collect();
    said.push(match action {
        Action::Evict => "Nothing is fetched before the next warmup or demand.".to_owned(),
        _ => "Values are served until the new ones land.".to_owned(),
    });
    for dependant in &effect.effect.dependants {
        said.push(format!("Entries of {dependant} are made from these, and are made again where these change."));
    }
    for budget in &effect.budgets {
        let [left, all] = [budget.tokens_left, budget.tokens_budget].map(grouped);
        said.push(format!("The budget of {} has {left} of {all} tokens left in this window.", budget.upstream));
    }
    if jobs.is_empty() {
        said.push("No entry is concerned.".to_owned());
    }
    said
}

/// Carries out an action.
pub(super) async fn act(
    screen: Screen,
    Path(name): Path<String>,
    Fields(target): Fields<Target>,
) -> Result<Response, Failure> {
    let action = Action::read(&name)?;
    target.check(action, &screen)?;
    let ops = &screen.parts.ops;
    let note = if action == Action::Retry { &target.cause } else { &target.note };
    let change = Change {
        who: screen.visitor.role.map_or("anybody", |role| role.as_str()).to_owned(),
        way: "console".to_owned(),
        action: name,
        target: target.name(),
        note: note.clone(),
        worker: screen.parts.worker.to_string(),
    };
    ops.record(&change).await.map_err(|e| {
        let detail = format!("Nothing was changed, since the audit log cannot be written. Redis: {}", explain(&e));
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "Not noted, so not done", detail)
    })?;
    carry_out(&screen, action, &target).await.map_err(Failure::of_action)?;
    Ok(Redirect::to(&target.url(action)).into_response())
}

async fn carry_out(screen: &Screen, action: Action, target: &Target) -> Result<(), Failure> {
    let ops = &screen.parts.ops;
    let job = || ops.jobs.jobs.get(target.job.as_str()).ok_or_else(|| unknown(&target.job));
    match action {
        Action::Warm => {
            let (keys, jobs): (&[_], &[_]) = match target.key.is_empty() {
                true => (&[], std::slice::from_ref(&target.job)),
                false => (std::slice::from_ref(&target.key), &[]),
            };
            warm_due(&screen.parts, keys, jobs).await.map_err(|problem| {
                Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Not fetched", problem.detail().to_owned())
            })?;
        }
        Action::Pause => _ = ops.pause(job()?, Some(&target.note)).await?,
        Action::Resume => _ = ops.resume(job()?).await?,
        Action::Invalidate | Action::Evict => {
            inbox::publish(&mut ops.redis.clone(), &ops.keys, &action.message(target)).await?;
        }
        Action::Retry => {
            let letters = screen.letters(target).await?;
            ops.put_back(job()?, &letters).await?;
        }
    }
    Ok(())
}

impl Screen {
    /// Returns the dead letters of a job with the cause that a target names.
    async fn letters(&self, target: &Target) -> Result<Vec<crate::ops::Dead>, Failure> {
        let ops = &self.parts.ops;
        let job = ops.jobs.jobs.get(target.job.as_str()).ok_or_else(|| unknown(&target.job))?;
        let _turn = self.console.admin.turn().await;
        Ok(ops.dead_of(job, &target.cause).await?)
    }
}
