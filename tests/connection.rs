//! Connections to Redis in good times and bad.
use crate::support::{TestRedis, both, eventually, samovar};
use redis::AsyncCommands;
use samovar::redis::{Connection, RedisUrl};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_millis(500);

async fn connect(redis: &TestRedis) -> Connection {
    redis.redis_url().manager(PATIENCE).await.unwrap()
}

#[tokio::test]
async fn a_connection_survives_a_restart_and_a_long_outage() {
    let mut redis = TestRedis::start().await;
    let mut connection = connect(&redis).await;
    redis.kill9();
    let gone = Instant::now();
    while gone.elapsed() < Duration::from_secs(3) {
        assert!(connection.get::<_, Option<String>>("key").await.is_err());
    }
    redis.start_again().await;
    eventually("commands work again", async || connection.set::<_, _, ()>("key", 1).await).await;
}

/// The crate's own manager takes a refused password for the last word and never connects again.
#[tokio::test]
async fn a_connection_survives_a_password_that_was_wrong_for_a_while() {
    let mut redis = TestRedis::options().password("first").start().await;
    let mut connection = connect(&redis).await;
    let admin = redis.redis_url();
    redis.ask::<()>(&["CONFIG", "SET", "requirepass", "second"]).await;
    let mut other = RedisUrl::at("127.0.0.1", redis.port(), 0, Some("second")).manager(PATIENCE).await.unwrap();
    let _: () = redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]).query_async(&mut other).await.unwrap();
    for _ in 0..3 {
        assert!(connection.get::<_, Option<String>>("key").await.is_err());
    }
    assert!(admin.manager(PATIENCE).await.is_err(), "the old password is refused");
    redis.restart().await;
    eventually("commands work again", async || connection.get::<_, Option<String>>("key").await).await;
}

#[tokio::test]
async fn no_command_waits_beyond_its_patience_for_a_hung_redis() {
    let redis = TestRedis::start().await;
    let mut connection = connect(&redis).await;
    redis.freeze();
    let error = connection.get::<_, Option<String>>("key").await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    redis.thaw();
    eventually("commands work again", async || connection.get::<_, Option<String>>("key").await).await;
}

#[tokio::test]
async fn the_first_attempt_says_at_once_what_is_wrong() {
    let mut redis = TestRedis::options().password("secret").start().await;
    let without = RedisUrl::at("127.0.0.1", redis.port(), 0, None).manager(PATIENCE).await.unwrap_err();
    assert!(without.to_string().contains("NOAUTH") || without.to_string().contains("uthentication"), "{without}");
    let wrong = RedisUrl::at("127.0.0.1", redis.port(), 0, Some("hunter2")).manager(PATIENCE).await.unwrap_err();
    assert!(!format!("{wrong} {wrong:?}").contains("hunter2"), "{wrong:?}");
    redis.kill9();
    assert!(redis.redis_url().manager(PATIENCE).await.unwrap_err().is_connection_refusal());
}

#[tokio::test]
async fn the_database_of_the_url_is_the_one_that_is_used() {
    let redis = TestRedis::start().await;
    let mut fifth = RedisUrl::at("127.0.0.1", redis.port(), 5, None).manager(PATIENCE).await.unwrap();
    fifth.set::<_, _, ()>("key", 1).await.unwrap();
    assert_eq!(redis.get("key").await, None);
    assert!(redis.ask::<String>(&["INFO", "keyspace"]).await.contains("db5:keys=1"));
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let redis = TestRedis::options().arg("--unixsocket", "redis.sock").start().await;
    let folder = &redis.ask::<Vec<String>>(&["CONFIG", "GET", "dir"]).await[1];
    let url = RedisUrl::parse(&format!("unix://{folder}/redis.sock?db=5"), None).unwrap();
    url.manager(PATIENCE).await.unwrap().set::<_, _, ()>("key", 1).await.unwrap();
    assert!(redis.ask::<String>(&["INFO", "keyspace"]).await.contains("db5:keys=1"));
}

#[tokio::test]
async fn a_user_of_the_url_is_who_logs_in() {
    let redis = TestRedis::start().await;
    redis.ask::<()>(&["ACL", "SETUSER", "reader", "on", ">pass/word", "~*", "+@all", "-set"]).await;
    let url = format!("redis://reader:pass%2Fword@127.0.0.1:{}", redis.port());
    let mut reader = RedisUrl::parse(&url, None).unwrap().manager(PATIENCE).await.unwrap();
    assert_eq!(reader.get::<_, Option<String>>("key").await.unwrap(), None);
    let error = reader.set::<_, _, ()>("key", 1).await.unwrap_err();
    assert!(error.to_string().contains("no permissions"), "{error}");
}

#[tokio::test]
async fn tls_trusts_the_given_authority_and_no_other() {
    let redis = tls_redis().await;
    let mut connection = connect(&redis).await;
    connection.set::<_, _, ()>("key", 1).await.unwrap();
    assert_eq!(redis.get("key").await.as_deref(), Some("1"));

    let error = RedisUrl::parse(&redis.url(), None).unwrap().manager(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let stranger = tls_redis().await;
    let url = RedisUrl::parse(&redis.url(), stranger.ca().as_deref()).unwrap();
    let error = url.manager(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

async fn tls_redis() -> TestRedis {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    TestRedis::options().tls(certificate.pem(), key.serialize_pem()).start().await
}

#[tokio::test]
async fn a_server_that_is_no_redis_is_told_from_one_that_is_away() {
    let (redis, upstream) = both().await;
    let (secret, web) = (tls_redis().await, upstream.url().trim_start_matches("http://").to_owned());
    let error = async |url: &str| RedisUrl::parse(url, None).unwrap().manager(PATIENCE).await.unwrap_err().to_string();
    let told = error(&format!("redis://{web}")).await;
    assert!(told.starts_with(&format!("{web} answers, but not as Redis does: check host and port")), "{told}");
    let told = error(&format!("redis://127.0.0.1:{}", secret.port())).await;
    assert!(told.contains("a port that wants TLS needs a URL that begins with rediss"), "{told}");
    for port in [format!("127.0.0.1:{}", redis.port()), web.clone()] {
        let told = error(&format!("rediss://{port}")).await;
        assert!(told.starts_with(&port) && told.contains("a port without TLS needs a URL"), "{told}");
    }
    for (kind, path) in [("cluster", ""), ("sentinel", "/main")] {
        let told = error(&format!("redis+{kind}://{web}{path}")).await;
        assert!(told.contains(&format!("{web}: it answers, but not as Redis does")), "{told}");
    }
    let refused = samovar(["jobs"]).redis_at(&format!("redis://{web}")).run().await;
    assert_eq!(refused.code, Some(69), "{refused:?}");
    assert!(refused.stderr.contains("not as Redis does") && !refused.stderr.contains("running"), "{refused:?}");
}
