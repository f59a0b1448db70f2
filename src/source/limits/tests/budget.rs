use super::super::admission::TAKE;
use super::super::breaker::Verdict;
use super::super::gate::INSPECT;
use super::super::millis;
use super::super::permit::RETURN;
use super::*;
use crate::source::{Cost, Spent};

fn budgeted(tokens: u64, per: Duration) -> Upstream {
    Upstream { tokens: Some(TokenBudget { tokens, per }), ..upstream() }
}

const HOUR: Duration = Duration::from_secs(3600);
/// Of 100 tokens, as far as is known before it is asked.
const HUNDRED: Cost = Cost { prompt: 20, answer: Some(80) };

impl Gate {
    /// A permit for a request of that cost, if there is one just now.
    async fn try_for(self: &Arc<Self>, cost: Cost) -> Result<Permit, &'static str> {
        self.admit_for(Priority::Normal, within(100), cost).await.map_err(|refusal| refusal.reason)
    }
}

impl Permit {
    /// The request cost so much.
    async fn cost(mut self, all: u64) {
        let prompt = self.cost.prompt;
        self.begin();
        self.spent(Spent::Tokens { prompt, all });
        self.done(Ended::Ok).await;
    }
}

impl Server {
    async fn spent(&self) -> Option<u64> {
        redis::cmd("HGET")
            .arg("test:budget:{museum}")
            .arg("tokens")
            .query_async(&mut self.connect().await)
            .await
            .unwrap()
    }

    async fn held(&self) -> u32 {
        redis::cmd("HLEN").arg("test:reserved:{museum}").query_async(&mut self.connect().await).await.unwrap()
    }

    async fn set(&self, words: &[&str]) {
        redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut self.connect().await).await.unwrap();
    }
}

#[tokio::test]
async fn requests_under_way_do_not_pass_the_budget_together() {
    let server = Server::start().await;
    let limited = budgeted(1000, HOUR);
    let gates = [server.gate(&limited).await, server.gate(&limited).await];
    let mut permits = Vec::new();
    for index in 0..10 {
        permits.push(gates[index % 2].try_for(HUNDRED).await.unwrap());
    }
    assert_eq!(gates[0].try_for(HUNDRED).await.unwrap_err(), "reserved");
    assert_eq!(gates[1].closed_for(), None, "it may be a moment only");
    gates[1].try_for(Cost::default()).await.expect("what costs nothing waits for no budget").done(Ended::Ok).await;
    for permit in permits {
        permit.cost(50).await;
    }
    assert_eq!((server.spent().await, server.held().await), (Some(500), 0));
    let permit = gates[0].try_for(HUNDRED).await.expect("what they did not need came back");
    permit.done(Ended::Unused).await;
    assert_eq!((server.spent().await, server.held().await), (Some(500), 0));
}

#[tokio::test]
async fn estimate_above_what_is_left_goes_alone() {
    let server = Server::start().await;
    let limited = budgeted(1000, HOUR);
    let (gate, other) = (server.gate(&limited).await, server.gate(&limited).await);
    let huge = Cost { prompt: 1, answer: Some(1_000_000) };
    let permit = gate.try_for(huge).await.unwrap();
    assert_eq!(other.try_for(HUNDRED).await.unwrap_err(), "reserved");
    permit.cost(950).await;
    let small = other.try_for(Cost { prompt: 1, answer: Some(9) }).await.unwrap();
    assert_eq!(gate.try_for(HUNDRED).await.unwrap_err(), "reserved");
    small.cost(10).await;
    let last = gate.try_for(HUNDRED).await.expect("the rest is used");
    assert_eq!(other.try_for(HUNDRED).await.unwrap_err(), "reserved");
    last.cost(100).await;
    assert_eq!(server.spent().await, Some(1060));
    assert_eq!(other.try_for(HUNDRED).await.unwrap_err(), "tokens");
}

#[tokio::test]
async fn answers_without_a_limit_are_held_as_long_as_others_were() {
    let server = Server::start().await;
    let limited = budgeted(1000, HOUR);
    let (gate, other) = (server.gate(&limited).await, server.gate(&limited).await);
    let open = Cost { prompt: 20, answer: None };
    let first = gate.try_for(open).await.unwrap();
    assert_eq!(other.try_for(open).await.unwrap_err(), "reserved", "the first may be of any length");
    first.cost(100).await;
    let mut permits = Vec::new();
    for _ in 0..9 {
        permits.push(other.try_for(open).await.unwrap());
    }
    assert_eq!(gate.try_for(open).await.unwrap_err(), "reserved");
    // What is not told is counted as what answers cost.
    let mut untold = permits.pop().unwrap();
    assert_eq!(untold.spent(Spent::Untold { prompt: 20 }), 100);
    untold.done(Ended::UpstreamFailed).await;
    assert_eq!(server.spent().await, Some(200));
    // A longer one counts at once.
    permits.pop().unwrap().cost(400).await;
    assert_eq!(gate.try_for(open).await.unwrap_err(), "reserved");
    drop(permits);
    other.refresh().await;
    let last = gate.try_for(open).await.unwrap();
    assert_eq!(other.try_for(open).await.unwrap_err(), "reserved", "twice 400 is too much");
    last.cost(21).await;
}

#[tokio::test]
async fn what_a_dead_worker_held_runs_out() {
    let server = Server::start().await;
    let limited = Upstream { timeout: Duration::ZERO, ..budgeted(100, HOUR) };
    let (dead, other) = (server.gate(&limited).await, server.gate(&limited).await);
    std::mem::forget(dead.try_for(HUNDRED).await.unwrap());
    assert_eq!(other.try_for(HUNDRED).await.unwrap_err(), "reserved");
    other
        .admit_for(Priority::Normal, within(30_000), HUNDRED)
        .await
        .expect("after the grace")
        .done(Ended::Unused)
        .await;
    // Sooner, where somebody finds it dead.
    let named =
        Gate::new(Arc::new(budgeted(100, HOUR)), server.connect().await, &Keys::new("test", "test:invalidate"), 64);
    let named = Arc::new(named.held_by("worker"));
    std::mem::forget(named.try_for(HUNDRED).await.unwrap());
    assert_eq!(other.try_for(HUNDRED).await.unwrap_err(), "reserved");
    other.rescue("worker").await.unwrap();
    other.try_for(HUNDRED).await.expect("given back").done(Ended::Unused).await;
    assert_eq!((server.spent().await, server.held().await), (None, 0));
}

#[tokio::test]
async fn window_that_ends_forgets_what_was_spent_and_not_what_is_held() {
    let server = Server::start().await;
    let limited = budgeted(1000, Duration::from_secs(2));
    let gate = server.gate(&limited).await;
    let under_way = gate.try_for(Cost { prompt: 100, answer: Some(800) }).await.unwrap();
    gate.admit(Priority::Normal, within(1000)).await.unwrap().cost(1000).await;
    assert_eq!(gate.try_for(HUNDRED).await.unwrap_err(), "tokens");
    let fits = gate.admit_for(Priority::Normal, within(20_000), HUNDRED).await.expect("a new window");
    assert_eq!(gate.try_for(HUNDRED).await.unwrap_err(), "reserved");
    under_way.cost(600).await;
    assert_eq!(server.spent().await, Some(600), "it counts in the window in which it ends");
    fits.done(Ended::Unused).await;
}

/// The flags are those of the scripts, by which one gate of the fleet logs.
#[tokio::test]
async fn each_budget_is_told_of_once_in_a_window() {
    let server = Server::start().await;
    let told = async |budget: u64, cost: u64| -> u8 {
        let gate = server.gate(&budgeted(budget, HOUR)).await;
        let mut call = gate.call(&RETURN);
        call.arg("none").arg("answered").arg(0).arg(gate.budget.spend(cost).args()).arg(millis(HOUR)).arg(budget);
        call.arg(10).arg(1).arg(1).arg("signal").arg("news").arg(0);
        call.invoke_async::<Verdict>(&mut server.connect().await).await.unwrap().2
    };
    assert_eq!((told(1000, 700).await, told(1000, 100).await, told(1000, 1).await), (0, 80, 0));
    let lowered = server.gate(&budgeted(500, HOUR)).await;
    let mut admission = lowered.call(&TAKE);
    admission.arg("id").arg(1000).arg(0).arg(0).arg(0).arg(0).arg(500).arg("gate").arg(0).arg(20).arg(80);
    let refusal =
        async || -> (String, u64, u8, u8, u64) { admission.invoke_async(&mut server.connect().await).await.unwrap() };
    let (first, second) = (refusal().await, refusal().await);
    assert_eq!((first.0.as_str(), first.2, second.2), ("tokens", 100, 0));
    assert_eq!((told(400, 1).await, told(400, 1).await, told(500, 1).await), (100, 0, 0), "each once");
    assert_eq!((told(1000, 200).await, told(1000, 1).await), (100, 0));
    assert_eq!((told(2000, 600).await, told(2000, 500).await), (80, 100), "a raised one");
    server.set(&["HSET", "test:budget:{museum}", "ends", "1"]).await;
    assert_eq!((told(2000, 1600).await, told(2000, 400).await), (80, 100), "another window");
}

/// Redis became a replica, so nothing can be counted.
#[tokio::test]
async fn uncounted_tokens_are_counted_with_the_next_call() {
    let server = Server::start().await;
    let limited = budgeted(1000, HOUR);
    let (gate, other) = (server.gate(&limited).await, server.gate(&limited).await);
    let permits = [gate.try_for(HUNDRED).await.unwrap(), gate.try_for(HUNDRED).await.unwrap()];
    let mut cut_off = gate.try_for(HUNDRED).await.unwrap();
    server.set(&["REPLICAOF", "127.0.0.1", "1"]).await;
    for permit in permits {
        permit.cost(90).await;
    }
    cut_off.begin();
    drop(cut_off);
    assert_eq!(server.spent().await, None);
    assert_eq!(gate.try_for(HUNDRED).await.unwrap_err(), "redis");
    server.set(&["REPLICAOF", "NO", "ONE"]).await;
    gate.admit_for(Priority::Normal, within(20_000), HUNDRED).await.unwrap().done(Ended::Unused).await;
    // Twice 90, and 100 that the request may have cost that nobody saw the end of.
    assert_eq!((server.spent().await, server.held().await), (Some(280), 0));
    other.try_for(HUNDRED).await.unwrap().cost(1).await;
    assert_eq!(server.spent().await, Some(281), "once");
}

#[tokio::test]
async fn strangers_key_at_the_permits_hides_no_tokens() {
    let server = Server::start().await;
    let gate = server.gate(&budgeted(100, HOUR)).await;
    server.set(&["SET", "test:permits:{museum}", "a stranger's"]).await;
    gate.try_for(HUNDRED).await.unwrap().cost(60).await;
    gate.try_for(HUNDRED).await.unwrap().cost(60).await;
    assert_eq!(server.spent().await, Some(120));
    assert_eq!(gate.try_for(HUNDRED).await.unwrap_err(), "tokens");
}

/// It opens the breaker, and gives its tokens back.
#[tokio::test]
async fn strangers_key_at_the_budget_hides_no_failure() {
    let server = Server::start().await;
    let mut listener = redis::Client::open(server.url.as_str()).unwrap().get_async_pubsub().await.unwrap();
    listener.subscribe("test:signal").await.unwrap();
    let gate = server.gate(&budgeted(1000, HOUR)).await;
    let permit = gate.try_for(HUNDRED).await.unwrap();
    server.set(&["HSET", "test:limit:{museum}", "failures", &(FAILURES - 1).to_string()]).await;
    server.set(&["SET", "test:budget:{museum}", "a stranger's"]).await;
    permit.done(Ended::UpstreamFailed).await;
    let message = futures_util::StreamExt::next(&mut listener.on_message()).await.unwrap();
    assert_eq!(message.get_payload::<String>().unwrap(), "upstream museum");
    assert_eq!(server.held().await, 0);
    let open: u64 = redis::cmd("HEXISTS")
        .arg("test:limit:{museum}")
        .arg("open")
        .query_async(&mut server.connect().await)
        .await
        .unwrap();
    assert_eq!(open, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_requests_do_not_starve_a_large_one() {
    let server = Server::start().await;
    let limited = budgeted(1000, HOUR);
    let (busy, other) = (server.gate(&limited).await, server.gate(&limited).await);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let busy = busy.clone();
        tasks.spawn(async move {
            loop {
                if let Ok(permit) = busy.admit_for(Priority::Normal, within(60_000), HUNDRED).await {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    permit.done(Ended::Unused).await;
                }
            }
        });
    }
    while server.held().await < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let large = Cost { prompt: 1000, answer: Some(1_000_000) };
    other.admit_for(Priority::Normal, within(20_000), large).await.expect("its turn comes").done(Ended::Unused).await;
}

#[tokio::test]
async fn a_look_counts_what_is_owed_while_others_hold_tokens() {
    let server = Server::start().await;
    let limited = budgeted(1000, HOUR);
    let (gate, other) = (server.gate(&limited).await, server.gate(&limited).await);
    let under_way = other.try_for(HUNDRED).await.unwrap();
    gate.budget.owe(50);
    gate.refresh().await;
    assert_eq!((server.spent().await, server.held().await), (Some(50), 1));
    under_way.cost(60).await;
    assert_eq!((server.spent().await, server.held().await), (Some(110), 0));
}

#[tokio::test]
async fn strangers_key_at_what_is_held_stops_no_other_request() {
    let server = Server::start().await;
    let gate = server.gate(&Upstream { concurrency: Some(1), ..upstream() }).await;
    server.set(&["SET", "test:reserved:{museum}", "a stranger's"]).await;
    for _ in 0..3 {
        gate.admit(Priority::Normal, within(10_000)).await.unwrap().done(Ended::Ok).await;
    }
}

/// Another gate could otherwise spend the same part of the budget once more.
#[tokio::test]
async fn permits_go_back_with_the_tokens_that_are_owed() {
    let server = Server::start().await;
    let gate = server.gate(&budgeted(1000, HOUR)).await;
    let mut lost = gate.admit_for(Priority::Normal, within(10_000), HUNDRED).await.unwrap();
    let other = gate.admit_for(Priority::Normal, within(10_000), HUNDRED).await.unwrap();
    lost.spend(150);
    drop(lost);
    other.done(Ended::Ok).await;
    assert_eq!((server.held().await, server.spent().await), (0, Some(150)));
}

/// While Redis is away, a reload puts another gate in the place of one that owes tokens.
#[tokio::test]
async fn owed_tokens_are_counted_once_after_a_reload() {
    let server = Server::start().await;
    let (memory, limited) = (UpstreamMemory::default(), Arc::new(budgeted(1000, HOUR)));
    let generation = async || {
        let names = Keys::new("test", "test:invalidate");
        Gate::new(Arc::clone(&limited), server.connect().await, &names, 64).remembering(&memory)
    };
    let before = generation().await;
    before.budget.owe(50);
    drop(before);
    for _ in 0..2 {
        let after = generation().await;
        after.refresh().await;
        assert_eq!((server.spent().await, after.budget.owes()), (Some(50), false));
    }
}

/// As after a failover to a replica that lacks the last commands, or a restart from a snapshot.
#[tokio::test]
async fn tokens_that_redis_forgot_count_in_no_other_window() {
    let server = Server::start().await;
    let limited = budgeted(1000, HOUR);
    let (gate, other) = (server.gate(&limited).await, server.gate(&limited).await);
    gate.try_for(HUNDRED).await.unwrap().cost(60).await;
    other.try_for(HUNDRED).await.unwrap().cost(40).await;
    let (mut redis, window) = (server.connect().await, "test:budget:{museum}");
    let state: Vec<String> = redis::cmd("HGETALL").arg(window).query_async(&mut redis).await.unwrap();
    for ends in [None, Some(1)] {
        gate.try_for(HUNDRED).await.unwrap().cost(30).await;
        other.try_for(HUNDRED).await.unwrap().cost(20).await;
        let mut back = redis::pipe();
        back.del(window).cmd("HSET").arg(window).arg(&state);
        ends.inspect(|ends| _ = back.hset(window, "ends", ends));
        back.exec_async(&mut redis).await.unwrap();
        let before = if ends.is_some() { 0 } else { 100 };
        gate.try_for(HUNDRED).await.unwrap().cost(5).await;
        other.refresh().await;
        gate.refresh().await;
        assert_eq!(server.spent().await, Some(before + 5), "{ends:?}");
        other.try_for(HUNDRED).await.unwrap().cost(7).await;
        assert_eq!(server.spent().await, Some(before + 12), "{ends:?}");
    }
}

/// The connection gave up on them.
#[tokio::test]
async fn late_commands_count_nothing_twice() {
    let server = Server::start().await;
    let gate = server.gate(&budgeted(1000, HOUR)).await;
    gate.try_for(HUNDRED).await.unwrap().cost(60).await;
    let inspect = |(process, spent, counted): (&str, u64, u64)| {
        let mut call = gate.call(&INSPECT);
        call.arg(1000).arg(millis(HOUR)).arg(process).arg(spent).arg(counted).arg("signal").arg("news");
        call
    };
    gate.budget.owe(10);
    let (first, second) = (inspect(gate.budget.spend(0).args()), inspect(gate.budget.spend(20).args()));
    gate.refresh().await;
    let late = async || {
        for call in [&second, &first, &second] {
            call.invoke_async::<Verdict>(&mut server.connect().await).await.unwrap();
        }
        server.spent().await
    };
    assert_eq!(late().await, Some(90));
    server.set(&["HSET", "test:budget:{museum}", "ends", "1"]).await;
    gate.try_for(HUNDRED).await.unwrap().cost(5).await;
    assert_eq!(late().await, Some(5), "nor in the next window");
    server.set(&["FLUSHALL"]).await;
    assert_eq!(late().await, Some(30), "what was not confirmed then");
    gate.refresh().await;
    assert_eq!(server.spent().await, Some(30), "and nothing that was confirmed since");
    gate.try_for(HUNDRED).await.unwrap().cost(4).await;
    assert_eq!(server.spent().await, Some(34));
}
