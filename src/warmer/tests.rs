use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::*;
use crate::agenda::When;
use crate::entry::Outcome;
use crate::job::{Source, Template};
use crate::popularity::Popularity;
use crate::protocol::Keys;
use crate::redis::Connection;
use crate::redis::server::Server;
use crate::store::{Fresh, LastAttempt, Lease, Leased, Removal, SUSPECT_CRASHES, Stamp};

mod bulk;
mod wakes;

/// Longer than a test lasts: what is not given back stays.
const LONG: Duration = Duration::from_secs(600);
const JOBS: [(&str, &str); 3] =
    [("art", ""), ("tagged", "tags = [\"{{ value.tag.name }}\"]"), ("story", "[inputs]\nartwork = \"art:{name}\"")];

/// Panics for one name, as a bug would while an answer is judged, under a lease and with a permit.
fn panics(name: String) -> bool {
    assert_ne!(name, "poison", "as the test wants it");
    true
}

/// A warmer over a Redis of its own, whose upstream has two permits and answers as the test says.
struct Bench {
    _server: Server,
    redis: Connection,
    jobs: Arc<Jobs>,
    store: Store,
    agenda: Agenda,
    gate: Arc<Gate>,
    warmer: Arc<Warmer>,
    finisher: Finisher,
    /// Requests that wait for their answers.
    requests: mpsc::UnboundedReceiver<oneshot::Sender<Response>>,
    _http: JoinSet<()>,
}

impl Bench {
    async fn start() -> Self {
        let (mut http, (asked, requests)) = (JoinSet::new(), mpsc::unbounded_channel());
        let jobs = Arc::new(jobs(&mut http, asked).await);
        let server = Server::start().await;
        let redis = server.connect().await;
        let keys = Keys::new("samovar", "samovar:invalidate");
        let up = UpstreamName::new("up");
        let gate = Arc::new(Gate::new(Arc::clone(&jobs.upstreams[&up]), redis.clone(), &keys, 1));
        let (store, agenda) = (Store::new(redis.clone(), keys.clone()), Agenda::new(redis.clone(), keys.clone()));
        // As if the feed of each job had just named all entries.
        let popularity = Popularity::new(redis.clone(), keys.clone());
        let now = store.now().await.unwrap();
        jobs.jobs.keys().for_each(|job| popularity.note_answer(job, now));
        let (warmer, finisher) = Warmer::new(
            Arc::clone(&jobs),
            store.clone(),
            agenda.clone(),
            Sources::new(&jobs).unwrap(),
            [(up, Arc::clone(&gate))].into(),
            Telemetry::default(),
            popularity,
            LONG,
            CancellationToken::new(),
        );
        Self { _server: server, redis, jobs, store, agenda, gate, warmer, finisher, requests, _http: http }
    }

    /// Claims entries of a job that are due by this trigger.
    async fn claim(&self, job: &str, names: &[&str], trigger: Trigger) -> Chunk {
        let name = JobName::new(job);
        let keys: Vec<EntryKey> = names.iter().map(|name| EntryKey::new(format!("{job}:{name}"))).collect();
        self.ask::<()>(&["DEL", &format!("samovar:agenda:{{{job}}}")]).await;
        // A value fetched before is older than this.
        let before = self.store.now().await.unwrap();
        while self.store.now().await.unwrap() == before {}
        self.agenda.put(&name, &keys, When::NOW, trigger).await.unwrap();
        let claims = self.agenda.claim(&name, 100, 100, LONG).await.unwrap();
        assert_eq!(claims.entries.len(), names.len());
        Chunk { job: job.to_owned(), entries: claims.entries }
    }

    /// Takes an entry of a job that is due by this trigger.
    async fn take(&self, job: &str, name: &str, trigger: Trigger) -> (Arc<Job>, Running) {
        let Chunk { mut entries, .. } = self.claim(job, &[name], trigger).await;
        let score = self.agenda.take(&JobName::new(job), &entries, LONG, None).await.unwrap().remove(0).unwrap();
        (Arc::clone(&self.jobs.jobs[job]), Running::new(entries.remove(0), score, LONG))
    }

    /// Makes one attempt; `answer` answers its requests, of which it gets the number.
    async fn attempt(
        &mut self,
        (job, entry): &(Arc<Job>, Running),
        mut answer: impl AsyncFnMut(usize) -> Response,
    ) -> Ending {
        let mut attempt = std::pin::pin!(self.warmer.attempt(job, entry));
        let mut asked = 0;
        let ending = loop {
            tokio::select! {
                ending = &mut attempt => break ending,
                Some(request) = self.requests.recv() => {
                    asked += 1;
                    let _ = request.send(answer(asked).await);
                }
            }
        };
        self.warmer.in_flight.end(&entry.place(job));
        ending
    }

    /// Warms an entry of the job `art` that its upstream answers like this; returns how it ended.
    async fn answered(&mut self, name: &str, status: u16, body: &str) -> Outcome {
        let entry = self.take("art", name, Trigger::Cron).await;
        self.attempt(&entry, async |_| reply(status, body)).await.outcome
    }

    /// Takes the lease of an entry as another worker.
    async fn lease(&self, key: &str) -> Lease {
        match self.store.lease(&EntryKey::new(key), LONG, Fresh::default()).await.unwrap() {
            Leased::Yes(lease) => *lease,
            other => panic!("no lease: {other:?}"),
        }
    }

    async fn leases(&self) -> Vec<String> {
        self.ask(&["KEYS", "samovar:lease:*"]).await
    }

    /// Asserts it without a refresh of the gate, which would give back dropped permits as well.
    async fn no_permit_is_held(&self, what: &str) {
        assert_eq!(self.gate.in_flight(), 0, "{what}");
        assert_eq!(self.ask::<usize>(&["ZCARD", "samovar:permits:{up}"]).await, 0, "{what}");
    }

    async fn nothing_is_held(&self, what: &str) {
        assert_eq!(self.leases().await, Vec::<String>::new(), "{what}");
        self.no_permit_is_held(what).await;
        assert_eq!(self.warmer.in_flight(), 0, "{what}");
    }

    async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        ask(&self.redis, words).await
    }
}

async fn ask<T: redis::FromRedisValue>(redis: &Connection, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(&mut redis.clone()).await.unwrap()
}

fn reply(status: u16, body: &str) -> Response {
    (StatusCode::from_u16(status).unwrap(), [("etag", "\"v\"")], body.to_owned()).into_response()
}

/// The jobs, and the upstream that hands over its requests. An entry named `poison` panics when its answer is judged.
async fn jobs(http: &mut JoinSet<()>, asked: mpsc::UnboundedSender<oneshot::Sender<Response>>) -> Jobs {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = async |State(asked): State<mpsc::UnboundedSender<_>>, _: Request| {
        let (answer, answered) = oneshot::channel();
        asked.send(answer).unwrap();
        answered.await.unwrap_or_else(|_| reply(503, ""))
    };
    let router = axum::Router::new().fallback(serve).with_state(asked);
    http.spawn(async { axum::serve(listener, router).await.unwrap() });
    let limits = format!("[up]\nurl = \"{url}\"\nconcurrency = 2\ntimeout = \"10m\"\n");
    let mut files = vec![("upstreams.toml".to_owned(), limits)];
    for (job, more) in JOBS {
        let source = "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/{{ name }}\"\n";
        let (head, tables) = if more.starts_with('[') { ("", more) } else { (more, "") };
        let text = format!("key = \"{job}:{{name}}\"\nttl = \"1h\"\n{head}\n{tables}\n{source}");
        files.push((format!("{job}.toml"), text));
    }
    let many = "key = \"many:{name}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/?names={{ \
                entries | map(attribute='name') | join(',') }}\"\nbulk = 10\n";
    files.push(("many.toml".to_owned(), many.to_owned()));
    let mut jobs = Jobs::parse(&files, LONG, &|_| None).unwrap();
    for job in jobs.jobs.values_mut() {
        let Source::Http(source) = &mut Arc::make_mut(job).sources[0] else { panic!("it is one") };
        source.accept = Some(Template::parse("{{ panics(name) }}").unwrap().with_function("panics", panics));
    }
    jobs
}

#[tokio::test]
async fn a_panic_ends_the_attempt_at_one_entry_only() {
    const NAMES: [&str; 5] = ["a", "b", "poison", "c", "d"];
    let mut bench = Bench::start().await;
    let chunk = bench.claim("art", &NAMES, Trigger::Cron).await;
    {
        let mut warming = std::pin::pin!(Arc::clone(&bench.warmer).warm_chunk(chunk));
        loop {
            tokio::select! {
                () = &mut warming => break,
                Some(request) = bench.requests.recv() => { let _ = request.send(reply(200, "{}")); }
            }
        }
    }
    // The permit of a fetch that panicked is dropped.
    bench.gate.refresh().await;
    bench.nothing_is_held("after the panic").await;
    let Bench { warmer, finisher, redis, _server, .. } = bench;
    drop(warmer);
    finisher.run(CancellationToken::new()).await;

    for name in NAMES {
        let there: bool = ask(&redis, &["EXISTS", &format!("art:{name}")]).await;
        assert_eq!(there, name != "poison", "{name}");
    }
    let dead: Vec<String> = ask(&redis, &["ZRANGE", "samovar:dead:{art}", "0", "-1"]).await;
    assert_eq!(dead, ["art:poison"]);
    let reason: String = ask(&redis, &["HGET", "samovar:dead-reasons:{art}", "art:poison"]).await;
    assert!(reason.starts_with("warming panicked, which is a bug in Samovar"), "{reason}");
    let on_agenda: Vec<String> = ask(&redis, &["ZRANGE", "samovar:agenda:{art}", "0", "-1"]).await;
    assert!(on_agenda.len() == NAMES.len() - 1 && !on_agenda.contains(&"art:poison".to_owned()), "{on_agenda:?}");
}

#[tokio::test]
async fn whatever_the_answer_permit_and_lease_are_given_back() {
    let mut bench = Bench::start().await;
    let answers = [
        ("value", 200, "{}", Outcome::Warmed),
        ("value", 304, "", Outcome::Unchanged),
        ("value", 404, "", Outcome::Gone),
        ("error", 500, "", Outcome::Failed),
        ("refused", 403, "", Outcome::Failed),
        ("unusable", 200, "not JSON", Outcome::Failed),
        ("busy", 429, "", Outcome::Deferred),
    ];
    for (name, status, body, outcome) in answers {
        assert_eq!(bench.answered(name, status, body).await, outcome, "{status}");
        bench.nothing_is_held(&format!("{name} {status}")).await;
    }
}

#[tokio::test]
async fn an_answer_whose_tags_fail_gives_the_lease_back() {
    let mut bench = Bench::start().await;
    let entry = bench.take("tagged", "a", Trigger::Cron).await;
    let ending = bench.attempt(&entry, async |_| reply(200, "{}")).await;
    assert_eq!(ending.outcome, Outcome::Failed);
    assert!(ending.reason.as_ref().unwrap().contains("the tag `{{ value.tag.name }}`"), "{ending:?}");
    bench.nothing_is_held("a tag that cannot be rendered").await;
}

#[tokio::test]
async fn an_invalidation_during_the_fetch_leaves_no_lease_behind() {
    // How often the entry is invalidated, how, and how often it is asked for.
    for (times, removal, outcome, requests) in [
        (1, Removal::Refresh, Outcome::Warmed, 2),
        (1, Removal::Evict, Outcome::Fenced, 1),
        (usize::MAX, Removal::Refresh, Outcome::Fenced, 5),
    ] {
        let mut bench = Bench::start().await;
        let entry = bench.take("art", "a", Trigger::Cron).await;
        let (store, mut asked) = (bench.store.clone(), 0);
        let ending = bench
            .attempt(&entry, async |request| {
                asked = request;
                if request <= times {
                    let at = store.now().await.unwrap();
                    store.fence(&EntryKey::new("art:a"), Stamp { at, removal }).await.unwrap();
                }
                reply(200, "{}")
            })
            .await;
        assert_eq!((ending.outcome, asked), (outcome, requests), "{ending:?}");
        bench.nothing_is_held(&format!("{removal:?}, {times}")).await;
    }
}

#[tokio::test]
async fn a_refused_commit_leaves_no_lease_of_ours_behind() {
    let mut bench = Bench::start().await;
    let redis = bench.redis.clone();
    let entry = bench.take("art", "hash", Trigger::Cron).await;
    let ending = bench
        .attempt(&entry, async |_| {
            ask::<()>(&redis, &["HSET", "art:hash", "a", "1"]).await;
            reply(200, "{}")
        })
        .await;
    assert!(matches!(ending.next, Next::Dead(_)), "{ending:?}");
    bench.nothing_is_held("a hash by now").await;

    // Another writer's value is not extended: the entry is asked for without validators under the same lease.
    assert_eq!(bench.answered("foreign", 200, "{}").await, Outcome::Warmed);
    let entry = bench.take("art", "foreign", Trigger::Cron).await;
    let ending = bench
        .attempt(&entry, async |request| {
            ask::<()>(&redis, &["SET", "art:foreign", "1", "EX", "600"]).await;
            if request == 1 { reply(304, "") } else { reply(200, "{}") }
        })
        .await;
    assert_eq!(ending.outcome, Outcome::Warmed, "{ending:?}");
    bench.nothing_is_held("another writer's value").await;
}

#[tokio::test]
async fn a_lost_lease_that_another_worker_has_stays_with_it() {
    let mut bench = Bench::start().await;
    let entry = bench.take("art", "a", Trigger::Cron).await;
    let (redis, other) = (bench.redis.clone(), Store::new(bench.redis.clone(), bench.store.keys().clone()));
    let ending = bench
        .attempt(&entry, async |_| {
            let lease: Vec<String> = ask(&redis, &["KEYS", "samovar:lease:*"]).await;
            ask::<()>(&redis, &["DEL", &lease[0]]).await;
            other.lease(&EntryKey::new("art:a"), LONG, Fresh::default()).await.unwrap();
            reply(200, "{}")
        })
        .await;
    assert_eq!(ending.outcome, Outcome::Fenced, "{ending:?}");
    assert_eq!(bench.leases().await.len(), 1);
    bench.no_permit_is_held("a lost lease").await;
}

#[tokio::test]
async fn an_attempt_without_a_lease_gives_its_permit_back() {
    let mut bench = Bench::start().await;
    let unasked = async |_: usize| -> Response { panic!("nothing is fetched") };

    let lease = bench.lease("art:busy").await;
    let entry = bench.take("art", "busy", Trigger::Cron).await;
    assert_eq!(bench.attempt(&entry, unasked).await.outcome, Outcome::Busy);
    bench.no_permit_is_held("busy").await;
    bench.store.release(&EntryKey::new("art:busy"), &lease.token, None).await.unwrap();

    bench.ask::<()>(&["HSET", "art:hash", "a", "1"]).await;
    let entry = bench.take("art", "hash", Trigger::Cron).await;
    assert!(matches!(bench.attempt(&entry, unasked).await.next, Next::Dead(_)));
    bench.nothing_is_held("a hash").await;

    bench.ask::<()>(&["SET", "art:fresh", "1", "EX", "600"]).await;
    let entry = bench.take("art", "fresh", Trigger::Demand).await;
    assert_eq!(bench.attempt(&entry, unasked).await.outcome, Outcome::Unchanged);
    bench.nothing_is_held("fresh").await;

    let crashed = LastAttempt { crashes: 2, ..LastAttempt::default() };
    let lease = bench.lease("art:suspect").await;
    bench.store.release(&EntryKey::new("art:suspect"), &lease.token, Some(&crashed)).await.unwrap();
    let entry = bench.take("art", "suspect", Trigger::Cron).await;
    let warmer = Arc::clone(&bench.warmer);
    let other = warmer.suspect.lock().await;
    assert_eq!(bench.attempt(&entry, unasked).await.outcome, Outcome::Deferred);
    bench.nothing_is_held("a suspect whose turn has not come").await;
    drop(other);
    assert_eq!(bench.answered("suspect", 200, "{}").await, Outcome::Warmed, "its turn has come");
    bench.nothing_is_held("a suspect").await;
}

#[tokio::test]
async fn an_attempt_that_is_not_confirmed_gives_both_back() {
    let mut bench = Bench::start().await;
    let unasked = async |_: usize| -> Response { panic!("nothing is fetched") };

    let crashed = LastAttempt { crashes: 3, ..LastAttempt::default() };
    let lease = bench.lease("art:poison").await;
    bench.store.release(&EntryKey::new("art:poison"), &lease.token, Some(&crashed)).await.unwrap();
    let entry = bench.take("art", "poison", Trigger::Cron).await;
    assert!(matches!(bench.attempt(&entry, unasked).await.next, Next::Dead(_)));
    bench.nothing_is_held("poison").await;

    let entry = bench.take("art", "evicted", Trigger::Cron).await;
    bench.ask::<()>(&["DEL", "samovar:agenda:{art}"]).await;
    assert_eq!(bench.attempt(&entry, unasked).await.outcome, Outcome::Fenced);
    bench.nothing_is_held("evicted before the lease").await;
}

/// The entry's input goes while it waits for the permit. In the second round the input's agenda is a foreign key, so
/// that making the input due fails.
#[tokio::test]
async fn an_error_of_redis_under_the_lease_gives_both_back() {
    for is_error in [false, true] {
        let mut bench = Bench::start().await;
        bench.ask::<()>(&["SET", "art:a", "1", "EX", "600"]).await;
        let entry = bench.take("story", "a", Trigger::Cron).await;
        let redis = bench.redis.clone();
        let gets = async || {
            let stats: String = ask(&redis, &["INFO", "commandstats"]).await;
            stats.lines().find_map(|line| Some(line.strip_prefix("cmdstat_get:")?.to_owned()))
        };
        let permit = bench.gate.admit(Priority::Normal, Instant::now() + LONG).await.unwrap();
        let before = gets().await;
        let lose_input = async {
            // Its inputs are read before it waits for the permit.
            while gets().await == before {
                tokio::task::yield_now().await;
            }
            ask::<()>(&redis, &["DEL", "art:a"]).await;
            if is_error {
                ask::<()>(&redis, &["SET", "samovar:agenda:{art}", "foreign"]).await;
            }
            permit.done(crate::source::Ended::Unused).await;
        };
        let unasked = async |_: usize| -> Response { panic!("nothing is fetched") };
        let (ending, ()) = tokio::join!(bench.attempt(&entry, unasked), lose_input);
        assert_eq!(ending.outcome, Outcome::Deferred, "{ending:?}");
        let reason = ending.reason.unwrap();
        assert_eq!(reason.starts_with("redis: "), is_error, "{reason}");
        assert_eq!(reason.starts_with("waits for its input art:a"), !is_error, "{reason}");
        bench.nothing_is_held(&reason).await;
    }
}

#[tokio::test]
async fn an_input_that_is_gone_gives_the_lease_back() {
    let mut bench = Bench::start().await;
    let unasked = async |_: usize| -> Response { panic!("nothing is fetched") };
    assert_eq!(bench.answered("a", 404, "").await, Outcome::Gone);
    let entry = bench.take("story", "a", Trigger::Cron).await;
    let ending = bench.attempt(&entry, unasked).await;
    assert_eq!(ending.outcome, Outcome::Gone, "{ending:?}");
    bench.nothing_is_held("an input that is gone").await;
}

/// A value that is fresh, whose removal was held back, and whose worker died twice since.
#[tokio::test]
async fn a_suspect_whose_removal_is_held_back_is_asked_for() {
    let mut bench = Bench::start().await;
    assert_eq!(bench.answered("a", 200, "1").await, Outcome::Warmed);
    let (key, lease) = (EntryKey::new("art:a"), bench.lease("art:a").await);
    let held_until = lease.fetched_at + LONG;
    let died = LastAttempt { held_until, crashes: SUSPECT_CRASHES, ..LastAttempt::default() };
    bench.store.release(&key, &lease.token, Some(&died)).await.unwrap();
    let entry = bench.take("art", "a", Trigger::Demand).await;
    let ending = bench.attempt(&entry, async |_| reply(200, "2")).await;
    assert_eq!((ending.outcome, bench.ask::<String>(&["GET", "art:a"]).await.as_str()), (Outcome::Warmed, "2"));
    bench.nothing_is_held("a suspect").await;
}

#[tokio::test]
async fn what_is_evicted_while_it_is_asked_for_is_not_held_back() {
    let mut bench = Bench::start().await;
    let (job, key, other) = (JobName::new("art"), EntryKey::new("art:a"), EntryKey::new("art:b"));
    assert_eq!(bench.answered("a", 200, "1").await, Outcome::Warmed);
    for _ in 0..10 {
        bench.store.guard_removal(&job, &other, 10, false, RedisTime::ZERO).await.unwrap();
    }
    let entry = bench.take("art", "a", Trigger::Cron).await;
    let store = bench.store.clone();
    let evicted = async |_| {
        let now = store.now().await.unwrap();
        assert!(store.invalidate(&key, now, Removal::Evict).await.unwrap().removed);
        reply(404, "")
    };
    assert_eq!(bench.attempt(&entry, evicted).await.outcome, Outcome::Deferred);
    assert_eq!(bench.store.held_entries(&job).await.unwrap(), [other].into());
    bench.nothing_is_held("an eviction").await;
}

#[tokio::test]
async fn a_cancelled_attempt_is_handed_back() {
    let mut bench = Bench::start().await;
    let chunk = bench.claim("art", &["a"], Trigger::Cron).await;
    {
        let mut warming = std::pin::pin!(Arc::clone(&bench.warmer).warm_chunk(chunk));
        tokio::select! {
            () = &mut warming => panic!("it has no answer"),
            _ = bench.requests.recv() => {}
        }
    }
    assert_eq!((bench.leases().await.len(), bench.warmer.in_flight()), (1, 1));
    bench.warmer.hand_back().await;
    bench.gate.refresh().await;
    bench.nothing_is_held("cancelled").await;
}
