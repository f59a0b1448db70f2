//! The way in which tests reach their servers.

/// A topology that SAMOVAR_TEST_TOPOLOGY names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    Single,
    /// Each server is a master that a Sentinel names.
    Sentinel,
    /// Each server is a Cluster of three masters.
    Cluster,
}

/// Tests that run on one server also where others run on a Cluster: the reason, and the tests as `module::test` or,
/// with `::` at the end, all of a module.
const ONE_SERVER: &[(&str, &[&str])] = &[
    ("URLs, users and databases of one server", &["connection::", "redis_server::"]),
    (
        "a user of its own, whose URL the test writes",
        &["cache::a_wrong_password_is_told_when_the_cache_is_built", "survival::a_password_is_never_logged"],
    ),
    ("a proxy before the server, and a server that becomes a replica", &["faults::outage::"]),
    ("MONITOR shows what one server gets", &["script_calls::"]),
    ("snapshots of one server that are restored", &["lost_ways::restored::"]),
];

/// Tests that run without a Sentinel also where others have one.
const NO_SENTINEL: &[(&str, &[&str])] = &[
    (
        "subscriptions that are counted or cut, which a Sentinel has as well",
        &[
            "freshness::gaps::a_cut_subscription_of_the_only_worker_revalidates_everything",
            "freshness::gaps::a_worker_does_not_vouch_for_jobs_that_it_does_not_know",
        ],
    ),
    ("errors that name the server", &["survival::a_worker_that_starts_before_redis_waits_for_it_and_says_so"]),
];

impl Topology {
    /// Returns the topology for the servers of the current test.
    #[allow(clippy::disallowed_methods, reason = "settings of a test are none of Samovar's")]
    pub fn of_test() -> Self {
        match std::env::var("SAMOVAR_TEST_TOPOLOGY").as_deref() {
            Ok("sentinel") if !is_on(NO_SENTINEL) => Self::Sentinel,
            Ok("cluster") if !is_on(ONE_SERVER) => Self::Cluster,
            Ok("single" | "sentinel" | "cluster") | Err(_) => Self::Single,
            Ok(other) => panic!("SAMOVAR_TEST_TOPOLOGY is `{other}`: write single, sentinel or cluster"),
        }
    }
}

/// Returns `true` if the current test is on the list. A test is known by the name of its thread.
fn is_on(list: &[(&str, &[&str])]) -> bool {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    let is_named = |name: &&str| if name.ends_with("::") { test.starts_with(*name) } else { test == *name };
    list.iter().any(|(_, tests)| tests.iter().any(is_named))
}
