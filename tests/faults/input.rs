//! Bad input: no panic, no unbounded time, and nothing gets through to Redis or an upstream that it should not.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use samovar::entry::EntryKey;
use samovar::job::{Jobs, KeyPattern, Template};
use samovar::protocol::Keys;
use samovar::protocol::Message;
use samovar::protocol::keys::slot;
use samovar::redis::RedisUrl;
use serde_json::json;

use super::{both, factor, readable};
use crate::support::{Art, JobsFolder, Parts, Reply, TestRedis, eventually, samovar, talkative, worker};

const HOUR: Duration = Duration::from_secs(3_600);

fn cases(count: usize) -> ProptestConfig {
    let cases = u32::try_from(count * factor()).unwrap();
    // What failed once is tried again first, by everybody.
    let corpus = FileFailurePersistence::Direct("proptest-regressions/faults/input.txt");
    ProptestConfig { cases, failure_persistence: Some(Box::new(corpus)), ..ProptestConfig::default() }
}

/// Text with what means something to somebody.
fn nasty() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        "[a-z]{1,5}",
        "\\PC{0,8}",
        any::<String>(),
        prop::sample::select(vec![
            "{",
            "}",
            "{{",
            "}}",
            "{name}",
            "{{ name }}",
            "{% for",
            "%}",
            "[",
            "]",
            "*",
            "?",
            "\\",
            "\"",
            "'''",
            "\r\n",
            "\0",
            "..",
            "/",
            "~1",
            "%2e%2e",
            "\n",
            "=",
            "[source]",
            "key",
            ":",
            ",",
            "1e999",
            "-1",
            "🖼",
            "\u{202e}",
            "samovar:",
            "{samovar:queue}",
            "env.",
            "@",
            "redis://",
            "#",
            "unix:",
            "[::1]",
            "NaN",
            "//",
            " ",
            "/second",
            "99999999999999999999",
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
}

/// Job files of lines from the shipped ones and the tests', some of them changed.
fn job_file() -> impl Strategy<Value = String> {
    let lines = vec![
        "key = \"art:{name}\"",
        "ttl = \"1h\"",
        "description = \"x\"",
        "tags = [\"a:{{ value.b }}\"]",
        "[source]",
        "kind = \"http\"",
        "kind = \"ai\"",
        "upstream = \"museum\"",
        "path = \"/art/{{ name }}\"",
        "select = \"/a/0\"",
        "accept = \"{{ value.x is undefined }}\"",
        "value = { a = \"{{ value.b }}\" }",
        "[entries]",
        "list = [\"a\", \"b\"]",
        "feed = { upstream = \"museum\", path = \"/p\", select = \"/n\" }",
        "popular = 200",
        "[warm]",
        "schedule = \"*/30 * * * *\"",
        "timezone = \"Europe/Istanbul\"",
        "every = \"30m\"",
        "ahead = \"10m\"",
        "[inputs]",
        "art = \"art:{name}\"",
        "prompt = \"{{ name }}\"",
        "model = \"m\"",
        "fallback = []",
        "rate = \"20/second\"",
    ];
    let line = (prop::sample::select(lines), nasty(), 0..4_u8, any::<prop::sample::Index>());
    let changed = line.prop_map(|(line, with, how, at)| {
        let places: Vec<usize> = line.char_indices().map(|(place, _)| place).collect();
        let place = places[at.index(places.len())];
        match how {
            0 => line.to_owned(),
            1 => format!("{}{with}{}", &line[..place], &line[place..]),
            2 => line[..place].to_owned(),
            _ => format!("{} = {with}", line.split(' ').next().unwrap()),
        }
    });
    prop::collection::vec(changed, 0..16).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn a_job_file_is_taken_or_refused_with_reasons(text in job_file(), upstreams in nasty()) {
        let good = "[museum]\nurl = \"http://localhost\"\nrate = \"20/second\"\n";
        for upstreams in [good.to_owned(), format!("{good}{upstreams}")] {
            let folder = JobsFolder::new().upstreams(&upstreams).job("art", &text);
            match Jobs::load(folder.path(), HOUR, &|_| None) {
                Ok(_) => {}
                Err(faults) => prop_assert!(!faults.to_string().is_empty()),
            }
        }
    }

    /// A file may name what it reads, and nothing else is read: `env.` gives what it is asked for by name.
    #[test]
    fn rates_and_pointers_and_times_are_taken_or_refused(text in nasty()) {
        let quoted = json!(text);
        let folder = JobsFolder::new()
            .upstreams(&format!(
                "[museum]\nurl = \"http://localhost\"\nrate = {quoted}\ntokens = {quoted}\ntimeout = {quoted}\n"))
            .job("art", &format!(
                "key = \"art:{{name}}\"\nttl = {quoted}\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
                 path = {quoted}\nselect = {quoted}\n[warm]\n\
                 schedule = {quoted}\ntimezone = {quoted}\nahead = {quoted}\n"));
        let _ = Jobs::load(folder.path(), HOUR, &|_| None);
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_key_pattern_that_is_written_and_read_is_the_same(
        pattern in nasty(),
        values in prop::collection::vec(nasty(), 8),
    ) {
        let Ok(pattern) = KeyPattern::parse(&pattern) else { return Ok(()) };
        let params: BTreeMap<String, String> = pattern.names().iter().cloned().zip(values).collect();
        let Some(key) = pattern.write(&params.clone().into_iter().collect()) else { return Ok(()) };
        let read = pattern.read(key.as_str());
        prop_assert!(read.is_some(), "{key} is of its own pattern");
        let read = read.unwrap();
        prop_assert_eq!(pattern.write(&read), Some(key.clone()));
        prop_assert_eq!(read, params.into_iter().collect(), "{}", key);
    }

    #[test]
    fn what_belongs_to_a_key_lives_in_its_slot(key in nasty()) {
        let keys = Keys::new("samovar", "samovar:invalidate");
        let entry = EntryKey::new(key.as_str());
        let lease = keys.lease(&entry);
        prop_assert_eq!(slot(&lease), slot(&key));
        prop_assert_eq!(slot(&keys.meta(&entry)), slot(&key));
        prop_assert_eq!(keys.entry_of_lease(&lease), Some(key.as_str()));
    }

    #[test]
    fn an_invalidation_is_taken_or_refused(text in nasty()) {
        let _ = Message::parse(&text);
        let _ = Message::parse(&json!({"keys": [text], "patterns": [text], "action": text}).to_string());
    }

    #[test]
    fn a_redis_url_is_never_shown_with_its_password(text in nasty(), secret in "[a-zA-Z0-9]{12,20}") {
        let _ = RedisUrl::parse(&text, None);
        let text = format!("redis://:{secret}@{text}");
        let shown = match RedisUrl::parse(&text, None) {
            Ok(url) => format!("{url} {url:?}"),
            Err(e) => format!("{e} {e:?}"),
        };
        prop_assert!(!shown.contains(&secret), "{}", shown);
    }

    #[test]
    fn a_template_is_taken_or_refused_and_ends(text in nasty(), value in nasty()) {
        let Ok(template) = Template::parse(&text) else { return Ok(()) };
        let context = json!({"name": value, "value": {"a": [1, value], "b": {}}});
        let _ = template.render(&context);
        if let Ok(url) = template.render_url(&context) {
            prop_assert!(template.is_literal() || !url.contains("/../"), "{}", url);
        }
    }
}

/// Names that mean something to Redis, to HTTP, to a file system or to a shell.
const NASTY: [&str; 14] = [
    "*",
    "?",
    "[a-z]",
    "a\r\nX-Evil: 1",
    "a\r\nDEL art:good\r\n",
    "nul\0nul",
    "../../etc/passwd",
    "a/../b",
    "%2e%2e/b",
    "{samovar:queue}",
    "samovar:marker",
    "a?b=c#d",
    "🖼\u{202e}",
    "\\x00\"'`$(id)",
];

#[tokio::test]
async fn keys_reach_an_upstream_as_one_segment_and_redis_as_they_are() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.target, "version": 1})));
    let jobs = Art::of(&upstream).list(["good"]).folder();
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", "127.0.0.1:0").spawn();
    let http = worker.http().await;
    readable(&redis, "good").await;
    redis.set("other", "1", HOUR).await;
    let client = reqwest::Client::builder().timeout(HOUR).build().unwrap();
    let keys: Vec<String> = NASTY.iter().map(|name| format!("art:{name}")).collect();
    for key in &keys {
        let message = json!({"keys": [key], "action": "warm"});
        let answer = client.post(format!("{http}/invalidate?force=true")).json(&message).send().await.unwrap();
        assert!(answer.status().is_success(), "{key}: {} {}", answer.status(), answer.text().await.unwrap());
    }
    for (name, key) in NASTY.iter().zip(&keys) {
        let value = eventually(&format!("{key:?} is readable"), async || redis.json(key).await).await;
        let target = value["path"].as_str().unwrap();
        let segment = target.strip_prefix("/art/").unwrap_or_else(|| panic!("{key:?} left its place: {target}"));
        assert!(segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)), "{target}");
        assert_eq!(percent_encoding::percent_decode_str(segment).decode_utf8().unwrap(), *name);
    }
    assert!(upstream.all_requests().iter().all(|call| call.headers.get("x-evil").is_none()));
    // What is a glob to Redis is a key to us.
    for (name, key) in NASTY.iter().zip(&keys) {
        let message = json!({"keys": [key], "action": "evict"});
        client.post(format!("{http}/invalidate")).json(&message).send().await.unwrap();
        eventually(&format!("{name:?} is gone"), async || redis.get(key).await.is_none()).await;
        assert!(redis.get("art:good").await.is_some(), "{name:?} took more than itself");
    }
    assert_eq!(redis.get("other").await.as_deref(), Some("1"));
    assert!(worker.is_running());
}

/// Dots alone would be resolved away: such an entry is refused, and nothing is asked for.
#[tokio::test]
async fn a_name_of_dots_is_never_asked_for() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| Reply::json(json!({"path": call.target})));
    let jobs = Art::of(&upstream).list([".", "..", "good"]).warm("attempts = 1").folder();
    let _worker = talkative(&redis, &jobs).spawn();
    readable(&redis, "good").await;
    eventually("the others are given up", async || redis.ask::<usize>(&["ZCARD", "samovar:dead:{art}"]).await == 2)
        .await;
    assert_eq!(upstream.all_requests().len(), 1);
}

/// `samovar check` shows the names of the variables, and none of their values.
#[tokio::test]
async fn a_job_file_reads_only_what_it_names_and_check_shows_which() {
    let job = |path: &str| {
        JobsFolder::new()
            .upstreams("[museum]\nurl = \"http://127.0.0.1:1\"\nheaders = { Auth = \"{{ env.MUSEUM_TOKEN }}\" }\n")
            .job(
                "art",
                &format!(
                    "key = \"art:{{name}}\"\nttl = \"1h\"\n\
                     [source]\nkind = \"http\"\nupstream = \"museum\"\npath = {}\n",
                    json!(path)
                ),
            )
    };
    let check = async |jobs: &JobsFolder, args: &[&str], region: Option<&str>| {
        let words = std::iter::once("check").chain(args.iter().copied());
        let command = samovar(words).jobs(jobs).env("MUSEUM_TOKEN", "hunter22").env("NEVER_NAMED", "elsewhere77");
        let command = match region {
            Some(region) => command.env("REGION", region),
            None => command,
        };
        let ended = command.run().await;
        (ended.code, format!("{}{}", ended.stdout, ended.stderr))
    };
    let jobs = job("/{{ env.REGION }}/{{ name }}");
    for args in [&[][..], &["--json"]] {
        let (code, told) = check(&jobs, args, Some("nowhere55")).await;
        assert_eq!(code, Some(0), "{told}");
        for shown in ["MUSEUM_TOKEN", "REGION", "art.toml:6:", "upstreams.toml:3:"] {
            assert!(told.contains(shown), "{shown}: {told}");
        }
        for hidden in ["hunter22", "nowhere55", "NEVER_NAMED", "elsewhere77"] {
            assert!(!told.contains(hidden), "{hidden}: {told}");
        }
    }
    let (code, told) = check(&jobs, &[], None).await;
    assert_eq!(code, Some(78), "{told}");
    for shown in ["art.toml:6:", "path = ", "environment variable `REGION` is not set"] {
        assert!(told.contains(shown), "{shown}: {told}");
    }
    assert!(!told.contains("hunter22"), "{told}");
    for path in [
        "/{{ env }}",
        "/{{ env|list|join }}",
        "/{{ env[name] }}",
        "/{{ env['NEVER_' ~ 'NAMED'] }}",
        "/{% set all = env %}{{ all.NEVER_NAMED }}",
        "/{% for each in env %}{{ each }}{% endfor %}",
        "/{% include '/etc/passwd' %}",
        "/{% import '/etc/passwd' as all %}",
    ] {
        let (code, told) = check(&job(path), &[], Some("nowhere55")).await;
        assert_eq!(code, Some(78), "{path}: {told}");
        assert!(!told.contains("elsewhere77") && !told.contains("root:"), "{path}: {told}");
    }
}

/// Text that must be escaped in a terminal or a log: it commands the terminal, forges a line, or turns the direction.
const HOSTILE: &str =
    "\u{1b}[2J\u{9b}2J\u{7}\u{7f}\u{202e}\u{2066}\u{2028}\n2026-01-01T00:00:00Z ERROR forged\r\u{85}end";

fn is_hostile(c: char) -> bool {
    (c.is_control() && c != '\n') || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[track_caller]
fn is_clean(what: &str, text: &str) {
    assert!(!text.contains(is_hostile), "{what}: {text:?}");
    // A wrapped line is indented, as no line of a log and no row of a table is.
    let begins = |line: &str| line.strip_prefix(' ').unwrap_or(line).starts_with("2026-01-01T00:00:00Z");
    assert!(!text.lines().any(begins), "{what}: {text:?}");
}

#[tokio::test]
async fn no_key_and_no_answer_commands_a_terminal_or_forges_a_line() {
    let (redis, upstream) = both().await;
    let [good, bad, dead] = ["good", "bad", "dead"].map(|name| format!("{name}{HOSTILE}"));
    upstream.otherwise(move |call, _| match call.path() {
        path if path.starts_with("/art/bad") || path.starts_with("/art/dead") => Reply::text(HOSTILE).with_status(400),
        _ => Reply::json(json!({ HOSTILE: HOSTILE })),
    });
    // TOML has no way to write DEL as serde_json writes it.
    let art = Art::of(&upstream).list([HOSTILE.replace('\u{7f}', "")]).warm("attempts = 1");
    let jobs = art.top("description = \"a\\u001b[2Jb\\u009b\"").folder();
    let mut watching = Vec::new();
    for args in [&["watch"][..], &["watch", "--json"]] {
        watching.push((args, samovar(args).redis(&redis).jobs(&jobs).spawn()));
    }
    eventually("both watch", async || {
        redis.ask::<(String, u64)>(&["PUBSUB", "NUMSUB", "samovar:watched"]).await.1 == 2
    })
    .await;
    let logs = ["text", "json"].map(|format| talkative(&redis, &jobs).env("SAMOVAR_LOG_FORMAT", format).spawn());
    let keys = [&good, &bad].map(|name| format!("art:{name}"));
    Parts::of(&redis).await.invalidate(&json!({ "keys": keys, "action": "warm" }).to_string()).await;
    readable(&redis, &good).await;
    eventually("one is given up", async || redis.ask::<usize>(&["ZCARD", "samovar:dead:{art}"]).await == 1).await;
    let command = async |args: &[&str]| {
        let ended = samovar(args).redis(&redis).jobs(&jobs).run().await;
        is_clean(&args.join(" "), &format!("{}{}", ended.stdout, ended.stderr));
        if args.contains(&"--json") {
            serde_json::from_str::<serde_json::Value>(&ended.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"));
        }
        ended
    };
    let [good, bad, dead] = [good, bad, dead].map(|name| format!("art:{name}"));
    for json in [&[][..], &["--json"]] {
        for args in [
            &["get", &good][..],
            &["get", &bad],
            &["get", &format!("nobody:{HOSTILE}")],
            &["jobs"],
            &["dead"],
            &["dead", &bad],
            &["dead", "--retry"],
            &["check"],
            &["check", "--fetch"],
            &["warm", &dead, "--wait"],
            &["warm", &bad, "--dry-run"],
            &["warm", &good],
            &["invalidate", &good],
        ] {
            command(&[args, json].concat()).await;
        }
    }
    for args in [&["warm", HOSTILE][..], &["dead", HOSTILE], &["pause", HOSTILE], &["watch", "--job", HOSTILE]] {
        assert_eq!(command(args).await.code, Some(1), "{args:?}");
    }
    let shown = command(&["get", &good]).await.stdout;
    assert!(shown.contains("\\u009b") && shown.contains("\\u202e"), "{shown}");
    let known: serde_json::Value = serde_json::from_str(&command(&["get", &good, "--json"]).await.stdout).unwrap();
    assert_eq!(known["value"], json!({ HOSTILE: HOSTILE }), "JSON means the same");
    for (args, watch) in &watching {
        eventually("it is seen", async || watch.printed().iter().any(|line| line.contains("forged"))).await;
        let printed = watch.printed().join("\n");
        is_clean(&args.join(" "), &printed);
    }
    for log in &logs {
        is_clean("the log", &log.log().join("\n"));
    }
    assert!(logs.iter().any(|log| log.log().iter().any(|line| line.contains("forged"))), "the log tells of it");
}

/// A fault's excerpt and message quote the file, which may come from anybody.
#[tokio::test]
async fn a_faulty_job_file_commands_no_terminal() {
    let file = "key = \"art:{name}\"\nttl = \"1\u{9b}2J\u{202e}\"\n[source]\nkind = \"\u{9b}2J\"\n";
    let jobs = JobsFolder::new().job("art", file);
    let redis = TestRedis::start().await;
    for args in [&["check"][..], &["check", "--json"], &["worker"], &["jobs"]] {
        let ended = samovar(args).redis(&redis).jobs(&jobs).run().await;
        assert_eq!(ended.code, Some(78), "{ended:?}");
        is_clean(&args.join(" "), &format!("{}{}", ended.stdout, ended.stderr));
    }
}

#[tokio::test]
async fn a_secret_in_the_env_file_is_sent_as_it_stands() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!(1)));
    for (line, sent) in [
        ("abc$def12", "abc$def12"),
        ("abcdef12$", "abcdef12$"),
        ("'abc$def#12'", "abc$def#12"),
        ("\"abc$def\\\"12\"", "abc$def\"12"),
        ("abc#def\\12", "abc#def\\12"),
    ] {
        let jobs = Art::of(&upstream).list(["a"]).limits("headers = { X-Key = \"{{ env.APP_KEY }}\" }").folder();
        let fetched =
            samovar(["check", "--fetch"]).redis(&redis).jobs(&jobs).dot_env(&format!("APP_KEY={line}\n")).run();
        let fetched = fetched.await;
        assert_eq!(fetched.code, Some(0), "{fetched:?}");
        assert_eq!(upstream.all_requests().last().unwrap().header("x-key"), sent, "{line}");
    }
    let refused = samovar(["check"]).dot_env("A=1\nAPP_KEY=hunter2-${HOME}\n").run().await;
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains(".env:2: ") && refused.stderr.contains("single quotes"), "{refused:?}");
    assert!(!refused.stderr.contains("hunter2"), "{refused:?}");
}

#[tokio::test]
async fn check_fetch_tries_inputs_as_such_and_only_failures_fail_it() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|call, _| match call.path() {
        path if path.contains("bad") => Reply::status(500),
        path => Reply::json(json!(path)),
    });
    let of = |key: &str, path: &str, rest: &str| {
        format!(
            "key = \"{key}:{{name}}\"\nttl = \"1h\"\n\
             [source]\nkind = \"http\"\nurl = \"{}{path}/{{{{ name }}}}\"\n{rest}",
            upstream.url()
        )
    };
    let lists = "[inputs]\nbase = \"base:{name}\"\n[entries]\nlist = [\"a\"]\n";
    let jobs = |path: &str| {
        JobsFolder::new()
            .job("base", &of("base", path, ""))
            .job("story", &of("story", "/story", lists))
            .job("asked", &of("asked", "/asked", ""))
    };
    let check = async |path: &str, args: &[&str]| {
        samovar(["check", "--fetch"].iter().chain(args)).redis(&redis).jobs(&jobs(path)).run().await
    };
    let good = check("/base", &[]).await;
    assert_eq!(good.code, Some(0), "{good:?}");
    for line in ["✓ base: base:a: ", "✓ story: story:a: ", "– asked: not fetched: "] {
        assert!(good.stdout.contains(line), "{line}: {good:?}");
    }
    assert_eq!(upstream.calls("/base/a"), 1, "it is fetched once, and not for itself");
    let told: serde_json::Value = serde_json::from_str(&check("/base", &["--json"]).await.stdout).unwrap();
    assert_eq!(told["fetched"][1]["value"], "/base/a", "{told}");
    let bad = check("/bad", &[]).await;
    assert_eq!(bad.code, Some(1), "{bad:?}");
    assert!(bad.stdout.contains("✗ base: base:a: ") && bad.stdout.contains("✗ story: story:a: "), "{bad:?}");
}

/// Eight attempts take a minute, and none of them can succeed.
#[tokio::test]
async fn a_key_that_makes_no_request_is_a_dead_letter_at_once() {
    let (redis, upstream) = both().await;
    upstream.edit("/art/lost");
    let art = Art::of(&upstream).list(["a//x"]);
    let toml = art.toml().replace("{{ name }}", "{{ name | path }}");
    let jobs = art.folder().job("art", &toml);
    let mut worker = worker(&redis, &jobs);
    let reason = eventually("it is a dead letter", async || {
        redis.ask::<Option<String>>(&["HGET", "samovar:dead-reasons:{art}", "art:a//x"]).await
    })
    .await;
    assert!(reason.contains("empty") && reason.contains("`samovar invalidate 'art:a//x' --evict`"), "{reason}");
    let meta = Parts::of(&redis).await.meta("a//x").await.unwrap();
    assert_eq!((meta.last_attempt.failures, upstream.all_requests().len()), (1, 0), "{meta:?}");
    assert!(worker.is_running());
}
