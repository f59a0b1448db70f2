use super::*;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

fn parse(text: &str) -> RedisUrl {
    RedisUrl::parse(text, None).unwrap()
}

fn refused(text: &str) -> String {
    RedisUrl::parse(text, None).unwrap_err().to_string()
}

#[test]
fn missing_parts_have_the_usual_defaults() {
    assert_eq!(parse("redis://cache").to_string(), "redis://cache:6379/0");
    assert_eq!(parse(" redis://cache:6380/\n").to_string(), "redis://cache:6380/0");
    assert_eq!(parse("redis://cache/7").to_string(), "redis://cache:6379/7");
    assert_eq!(parse("redis://cache?db=7").to_string(), "redis://cache:6379/7");
}

#[test]
fn a_lone_name_before_the_host_is_the_password() {
    let url = parse("redis://secret@cache");
    assert_eq!((url.login.user.as_deref(), url.login.password.as_deref()), (None, Some("secret")));
    let url = parse("redis://:secret@cache");
    assert_eq!((url.login.user.as_deref(), url.login.password.as_deref()), (None, Some("secret")));
    let url = parse("redis://app:secret@cache");
    assert_eq!((url.login.user.as_deref(), url.login.password.as_deref()), (Some("app"), Some("secret")));
    let url = parse("redis://:@cache");
    assert_eq!((url.login.user, url.login.password), (None, None));
}

#[test]
fn valkey_means_redis() {
    assert_eq!(parse("valkey://cache").to_string(), "redis://cache:6379/0");
    assert_eq!(parse("valkeys://cache").to_string(), "rediss://cache:6379/0");
}

#[test]
fn ipv6_hosts_have_brackets_in_print_and_none_on_the_wire() {
    let url = parse("redis://[::1]:6380/2");
    assert_eq!(url.to_string(), "redis://[::1]:6380/2");
    let client = url.client().unwrap();
    assert_eq!(*client.get_connection_info().addr(), redis::ConnectionAddr::Tcp("::1".into(), 6380));
}

#[test]
fn unix_sockets_take_their_options_from_the_query() {
    let url = parse("unix:///run/my%20redis.sock?db=3&user=app&pass=secret");
    assert_eq!(url.to_string(), "unix:///run/my redis.sock?db=3");
    assert_eq!((url.login.user.as_deref(), url.login.password.as_deref()), (Some("app"), Some("secret")));
    assert!(refused("unix://run/redis.sock").contains("absolute path"));
}

#[test]
fn sentinels_are_named_in_two_forms() {
    for (text, shown) in [
        ("redis://s1:26380,s2,master1", "redis+sentinel://s1:26380,s2:26379/master1/0"),
        ("redis://app:secret@s1:1,[::1]:2,master1/3", "redis+sentinel://app:***@s1:1,[::1]:2/master1/3"),
        ("redis+sentinel://s1/master1", "redis+sentinel://s1:26379/master1/0"),
        ("valkeys+sentinel://secret@s1:1,s2/my%20cache/7", "rediss+sentinel://***@s1:1,s2:26379/my cache/7"),
        ("redis+sentinel://s1/m?db=4&sentinel_user=a&sentinel_password=b", "redis+sentinel://s1:26379/m/4"),
        ("rediss+sentinel://s1/m?sentinel_tls=off", "rediss+sentinel://s1:26379/m/0"),
    ] {
        assert_eq!(parse(text).to_string(), shown, "{text}");
    }
    for (text, part) in [
        ("redis+sentinel://s1,s2", "names no service"),
        ("redis+sentinel://s1/m/0/1", "a part too many"),
        ("redis+sentinel://s1/m/x", "write /0"),
        ("redis+sentinel://s1,:1/m", "host"),
        ("redis+sentinel://s1/m?sentinel_tls=maybe", "on nor off"),
        ("redis+sentinel://s1/m?quorum=2", "sentinel_password"),
        ("redis://s1?sentinel_user=a", "unknown option"),
        ("redis-sentinel://s1:1,s2:2/0#m", "redis+sentinel://"),
        ("redis+sentinel:/m", "names no host"),
        ("redis:cache", "names no host"),
        ("redis://s1:1,s2:2/mymaster", "if the hosts are Sentinels"),
        ("redis://s1,s2,master1", "does not tell what they are"),
    ] {
        assert!(refused(text).contains(part), "{text}: {}", refused(text));
    }
}

#[test]
fn a_cluster_is_named_by_some_of_its_nodes() {
    for (text, shown) in [
        ("redis+cluster://a", "redis+cluster://a:6379"),
        ("redis://a:1,b:2", "redis+cluster://a:1,b:2"),
        ("redis://app:p,w@a:1,[::1]:2/0", "redis+cluster://app:***@a:1,[::1]:2"),
        ("rediss+cluster://a:1,b", "rediss+cluster://a:1,b:6379"),
        ("valkey+cluster://a:1?user=app", "redis+cluster://app@a:1"),
    ] {
        assert_eq!(parse(text).to_string(), shown, "{text}");
    }
    assert_eq!(parse("redis://:pa,ss@cache").login.password.as_deref(), Some("pa,ss"));
    for (text, part) in [
        ("redis+cluster://a:1,b:2/3", "database 0 only"),
        ("redis+cluster://a:1?db=1", "database 0 only"),
        ("redis+cluster://a:1,:2", "invalid host"),
        ("redis://a,b", "does not tell what they are"),
    ] {
        assert!(refused(text).contains(part), "{text}: {}", refused(text));
    }
}

#[test]
fn faults_name_the_value_and_the_remedy() {
    assert_eq!(
        refused("http://cache"),
        "`http://cache` is of an unknown kind; write redis://, rediss:// or unix://, \
         redis+sentinel:// or redis+cluster://"
    );
    assert!(refused("cache:6379").contains("write redis://"));
    assert!(refused("redis://cache/zero").contains("write /0"));
    assert!(refused("redis://0.0.0.0").contains("127.0.0.1"));
    assert!(refused("redis:///0").contains("names no host"));
    assert!(refused("").contains("not a URL"));
    assert!(refused("rediss://cache#insecure").contains("SAMOVAR_REDIS_CA"));
    assert!(refused("rediss://cache?ssl_cert_reqs=none").contains("unknown option"));
}

#[test]
fn a_ca_is_refused_where_nothing_is_encrypted() {
    let error = RedisUrl::parse("redis://cache", Some(Path::new("ca.pem"))).unwrap_err().to_string();
    assert!(error.contains("rediss://"), "{error}");
}

#[test]
fn a_ca_file_must_hold_a_certificate() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "nothing here").unwrap();
    let error = RedisUrl::parse("rediss://cache", Some(file.path())).unwrap_err().to_string();
    assert!(error.contains("holds no certificate"), "{error}");
    let error = RedisUrl::parse("rediss://cache", Some(Path::new("/nowhere.pem"))).unwrap_err().to_string();
    assert!(error.contains("cannot read the CA file"), "{error}");
}

proptest! {
    #[test]
    fn an_encoded_password_arrives_whole(password in "\\PC{1,40}", user in "[a-z]{0,8}") {
        let encoded = utf8_percent_encode(&password, NON_ALPHANUMERIC);
        let url = parse(&format!("redis://{user}:{encoded}@cache:6380/4"));
        prop_assert_eq!(url.login.password.as_deref(), Some(password.as_str()));
        prop_assert_eq!(url.login.user.as_deref().unwrap_or_default(), user.as_str());
        let client = url.client().unwrap();
        prop_assert_eq!(client.get_connection_info().redis_settings().password(), Some(password.as_str()));
    }

    #[test]
    fn nothing_printed_holds_the_password(
        password in "[A-Z0-9/@:?#%&,\\[\\] ]{0,4}(ZZ|77)[A-Z0-9/@:?#%&,\\[\\] ]{4,12}",
        shape in prop::sample::select(vec![
            "redis://:PW@cache", "redis://app:PW@cache:6380/1", "redis://PW@cache/x", "rediss://PW@a,b/1",
            "redis+sentinel://:PW@a/b", "redis://:PW@a:1,b", "redis+sentinel://a/b?sentinel_password=PW",
            "http://:PW@cache", "redis://:PW@", "unix:///s?pass=PW", "redis://:PW@[::1",
            "unix:///s?secret=PW", "redis://cache?pass=PW&db=x", ":PW@cache", "redis//:PW@cache", "redis://cache#PW",
        ]),
        encode in any::<bool>(),
    ) {
        let encoded = utf8_percent_encode(&password, NON_ALPHANUMERIC).to_string();
        let text = shape.replace("PW", if encode { &encoded } else { &password });
        let printed = match RedisUrl::parse(&text, None) {
            Ok(url) => format!("{url} {url:?} {:?}", url.client()),
            Err(error) => format!("{error} {error:?}"),
        };
        // Any four characters in a row would be a piece of it; the shape's own host may hold shorter ones.
        prop_assert!(!printed.contains(&password), "{printed}");
        prop_assert!(!printed.contains(&encoded), "{printed}");
        let secret: Vec<char> = password.chars().collect();
        for piece in secret.windows(4).map(|piece| piece.iter().collect::<String>()) {
            prop_assert!(!printed.contains(&piece), "`{piece}` of `{password}` in `{printed}`");
        }
    }
}
