//! The rest of token budgets, as text for people.

use super::session::{relative, wrapped};
use crate::ops::BudgetLeft;
use crate::ops::words::grouped;
use crate::redis::RedisTime;

/// Prints a sentence on each budget.
pub(super) fn tell(budgets: &[BudgetLeft], now: RedisTime) {
    for budget in budgets {
        println!("{}", wrapped(&text(budget, now), "  "));
    }
}

/// Returns the rest of a budget as a sentence.
fn text(budget: &BudgetLeft, now: RedisTime) -> String {
    let BudgetLeft { upstream, window_ends_ms, tokens_per_call, calls_left, .. } = budget;
    let [left, all, spent] = [budget.tokens_left, budget.tokens_budget, budget.tokens_spent].map(grouped);
    let rest = format!("Budget of {upstream}: {left} of {all} tokens are left");
    let rest = match window_ends_ms {
        Some(ends) if budget.tokens_left == 0 => {
            return format!(
                "{rest}, since {spent} are spent in this window: AI calls are deferred until it ends {}.",
                relative(*ends, now)
            );
        }
        Some(ends) => format!("{rest} in this window, which ends {}.", relative(*ends, now)),
        None => format!("{rest}; a window begins with the first tokens spent."),
    };
    match calls_left.zip(*tokens_per_call) {
        Some((calls, tokens)) => {
            let [calls, tokens] = [calls, tokens].map(grouped);
            format!("{rest} They last for about {calls} AI calls, at {tokens} tokens each as so far.")
        }
        None => rest,
    }
}
