use super::*;
use crate::job::{Source, Template};
use crate::popularity::Popularity;
use crate::protocol::Keys;
use crate::redis::Connection;
use crate::redis::server::Server;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Longer than a test lasts: what is not given back stays.
const LONG: Duration = Duration::from_secs(600);
const NAMES: [&str; 5] = ["a", "b", "poison", "c", "d"];

/// As a fault of ours would while the answer is looked at, under a lease and with a permit.
fn panics(name: String) -> bool {
    assert_ne!(name, "poison", "as the test wants it");
    true
}

/// The job `art`, whose entry `art:poison` panics when its answer is judged.
async fn jobs(http: &mut JoinSet<()>) -> Jobs {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    http.spawn(async { axum::serve(listener, axum::Router::new().fallback(async || "{}")).await.unwrap() });
    let files = [
        ("upstreams.toml".to_owned(), format!("[up]\nurl = \"{url}\"\nconcurrency = 2\ntimeout = \"10m\"\n")),
        (
            "art.toml".to_owned(),
            "key = \"art:{name}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/{{ name }}\"\n"
                .to_owned(),
        ),
    ];
    let mut jobs = Jobs::parse(&files, LONG, &|_| None).unwrap();
    for job in jobs.jobs.values_mut() {
        let job = Arc::make_mut(job);
        let Source::Http(source) = &mut job.sources[0] else { panic!("it is one") };
        source.accept = Some(Template::parse("{{ panics(name) }}").unwrap().with_function("panics", panics));
    }
    jobs
}

async fn ask<T: redis::FromRedisValue>(redis: &Connection, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(&mut redis.clone()).await.unwrap()
}

#[tokio::test]
async fn a_panic_is_that_entrys_own_affair() {
    let mut http = JoinSet::new();
    let jobs = Arc::new(jobs(&mut http).await);
    let server = Server::start().await;
    let redis = server.connect().await;
    let keys = Keys::new("samovar", "samovar:invalidate");
    let (name, up) = (JobName::new("art"), UpstreamName::new("up"));
    let gate = Arc::new(Gate::new(Arc::clone(&jobs.upstreams[&up]), redis.clone(), &keys, 64));
    let agenda = Agenda::new(redis.clone(), keys.clone());
    let (warmer, finisher) = Warmer::new(
        Arc::clone(&jobs),
        Store::new(redis.clone(), keys.clone()),
        agenda.clone(),
        Sources::new(&jobs).unwrap(),
        [(up, Arc::clone(&gate))].into(),
        Telemetry::default(),
        Popularity::new(redis.clone(), keys.clone()),
        LONG,
        CancellationToken::new(),
    );
    let entries = NAMES.map(|name| EntryKey::new(format!("art:{name}")));
    agenda.put(&name, &entries, crate::agenda::When::Due(0), Trigger::Cron).await.unwrap();
    let claims = agenda.claim(&name, 100, 100, LONG).await.unwrap();
    assert_eq!(claims.entries.len(), NAMES.len());

    let chunk = Chunk { job: "art".to_owned(), entries: claims.entries };
    Arc::clone(&warmer).warm_chunk(chunk).await;
    assert_eq!(warmer.in_hand(), 0);
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
    assert_eq!(ask::<Vec<String>>(&redis, &["KEYS", "samovar:lease:*"]).await, Vec::<String>::new());
    assert_eq!(gate.in_flight(), 0);
    gate.refresh().await;
    assert_eq!(ask::<usize>(&redis, &["ZCARD", "samovar:permits:{up}"]).await, 0);
    let on_agenda: Vec<String> = ask(&redis, &["ZRANGE", "samovar:agenda:{art}", "0", "-1"]).await;
    assert!(on_agenda.len() == NAMES.len() - 1 && !on_agenda.contains(&"art:poison".to_owned()), "{on_agenda:?}");
}
