//! The token budgets from which AI calls to come are paid.

use std::collections::{BTreeMap, BTreeSet};

use redis::RedisResult;
use serde::Serialize;

use super::status::{self, JobStatus, UpstreamStatus};
use super::{Ops, Plan};
use crate::entry::Outcome;
use crate::redis::RedisTime;

/// The rest of a token budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct BudgetLeft {
    /// The upstream.
    pub upstream: String,
    /// The tokens that may still be spent in this window.
    pub tokens_left: u64,
    /// The tokens that may be spent in a window.
    pub tokens_budget: u64,
    /// The tokens that are spent in this window.
    #[serde(skip)]
    pub tokens_spent: u64,
    /// When this window ends (Redis time, ms since the epoch); absent before the first tokens of a window are spent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub window_ends_ms: Option<RedisTime>,
    /// The tokens that each AI call to come may cost, by what the values of its job cost so far; absent if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_call: Option<u64>,
    /// The AI calls for which the tokens that are left may last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_left: Option<u64>,
}

impl Ops {
    /// Returns what is left of the budgets of the upstreams that the AI calls of these plans, by job, may ask. A budget
    /// that is one of `changed` upstreams and is spent already is returned in any case.
    ///
    /// # Errors
    /// Fails if Redis returns an error.
    pub async fn budgets(&self, plans: &[(&str, Plan)], changed: &BTreeSet<&str>) -> RedisResult<Vec<BudgetLeft>> {
        let paid = plans.iter().filter(|(_, plan)| plan.ai_calls + plan.fallback_ai_calls > 0);
        let jobs = paid.filter_map(|(job, _)| self.jobs.jobs.get(*job));
        let asked: BTreeSet<&str> = jobs.flat_map(|job| &job.upstreams).map(|asked| asked.name.as_str()).collect();
        if asked.is_empty() && changed.is_empty() {
            return Ok(Vec::new());
        }
        let costs = self.costs(plans).await?;
        let left = |known: UpstreamStatus| {
            let (tokens_budget, tokens_spent) = (known.tokens_budget?, known.tokens_spent?);
            let tokens_left = tokens_budget.saturating_sub(tokens_spent);
            let is_told = asked.contains(known.upstream.as_str())
                || (tokens_left == 0 && changed.contains(known.upstream.as_str()));
            let tokens_per_call = costs.get(&known.upstream).copied();
            is_told.then(|| BudgetLeft {
                tokens_left,
                tokens_budget,
                tokens_spent,
                window_ends_ms: known.tokens_window_ends_ms,
                tokens_per_call,
                calls_left: tokens_per_call.map(|tokens| tokens_left / tokens),
                upstream: known.upstream,
            })
        };
        let known = status::upstreams(&self.redis, &self.keys, &self.jobs).await?;
        Ok(known.into_iter().filter_map(left).collect())
    }

    /// Returns the tokens that a call to come to each upstream may cost: as much as a value of its job did so far. An
    /// upstream of several jobs has the mean over the calls.
    async fn costs(&self, plans: &[(&str, Plan)]) -> RedisResult<BTreeMap<String, u64>> {
        let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (job, plan) in plans.iter().filter(|(_, plan)| plan.ai_calls > 0) {
            let Some(job) = self.jobs.jobs.get(*job).filter(|job| job.may_hold_unasked) else { continue };
            let Some(upstream) = job.upstreams.first() else { continue };
            let JobStatus { usage, outcomes, .. } = status::of_job(&self.redis, &self.keys, job, None).await?;
            let values = outcomes.get(Outcome::Warmed.as_str()).copied().unwrap_or_default();
            if values > 0 && usage.tokens_spent > 0 {
                let (calls, tokens) = sums.entry(upstream.name.to_string()).or_default();
                let cost = (plan.ai_calls as u64).saturating_mul(usage.tokens_spent.div_ceil(values));
                *calls += plan.ai_calls as u64;
                *tokens = tokens.saturating_add(cost);
            }
        }
        Ok(sums.into_iter().map(|(upstream, (calls, tokens))| (upstream, tokens.div_ceil(calls))).collect())
    }
}
