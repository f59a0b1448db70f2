use super::*;
use std::fs;

fn resolve(variables: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    let env = variables.iter().copied().collect();
    Settings::resolve(&CommonArgs::default(), &WorkerArgs::default(), &env)
}

fn settings(variables: &[(&str, &str)]) -> Settings {
    resolve(variables).unwrap()
}

fn faults(variables: &[(&str, &str)]) -> Vec<String> {
    resolve(variables).unwrap_err().faults
}

fn environment(process: &[(&str, &str)], file: &str) -> Result<Environment, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".env"), file).unwrap();
    let process = process.iter().map(|(name, value)| (name.into(), value.into()));
    Environment::gather(process, &[folder.path().join(".env")], false).map_err(|error| ConfigError {
        faults: error.faults.iter().map(|f| f.replace(&folder.path().display().to_string(), "")).collect(),
    })
}

#[test]
fn nothing_set_gives_the_documented_defaults() {
    let settings = settings(&[]);
    assert_eq!(settings.redis.to_string(), "redis://127.0.0.1:6379/0");
    assert_eq!(settings.jobs, Path::new("jobs"));
    assert_eq!(settings.concurrency, 64);
    assert_eq!(settings.claim, Duration::from_secs(30));
    assert_eq!(settings.drain, Duration::from_secs(20));
    assert_eq!((settings.sample, settings.misses), (Duration::from_secs(10), false));
    assert_eq!(settings.prefix, "samovar");
    assert_eq!(settings.keys().invalidate_channel(), "samovar:invalidate");
    assert_eq!(settings.default_ttl, Duration::from_secs(3600));
    assert_eq!((settings.listen, settings.token), (Listen::Anywhere, None));
    assert_eq!(settings.log, LogFilter::default());
    assert_eq!(settings.log_format, LogFormat::Text);
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = "SAMOVAR_PREFIX=file\nSAMOVAR_CONCURRENCY=2\nSAMOVAR_CLAIM=2s\n";
    let env = environment(&[("SAMOVAR_PREFIX", "process"), ("SAMOVAR_CONCURRENCY", "3")], file).unwrap();
    let common = CommonArgs { prefix: Some("flag".into()), ..CommonArgs::default() };
    let settings = Settings::resolve(&common, &WorkerArgs::default(), &env).unwrap();
    assert_eq!(settings.prefix, "flag");
    assert_eq!(settings.concurrency, 3);
    assert_eq!(settings.claim, Duration::from_secs(2));
    assert_eq!(settings.drain, Duration::from_secs(20));
}

#[test]
fn empty_means_unset_on_every_level() {
    let env = environment(&[("SAMOVAR_PREFIX", ""), ("SAMOVAR_JOBS", "")], "SAMOVAR_PREFIX=file\nSAMOVAR_JOBS=\n");
    let common = CommonArgs { prefix: Some(String::new()), ..CommonArgs::default() };
    let settings = Settings::resolve(&common, &WorkerArgs::default(), &env.unwrap()).unwrap();
    assert_eq!(settings.prefix, "file");
    assert_eq!(settings.jobs, Path::new("jobs"));
}

#[test]
fn the_channel_follows_prefix_and_database_unless_it_is_named() {
    let channel = |variables: &[(&str, &str)]| settings(variables).keys().invalidate_channel();
    assert_eq!(channel(&[("SAMOVAR_PREFIX", "app:1")]), "app:1:invalidate");
    assert_eq!(channel(&[("REDIS_DB", "3")]), "samovar:db3:invalidate");
    assert_eq!(channel(&[("REDIS_DB", "3"), ("SAMOVAR_CHANNEL", "samovar:invalidate")]), "samovar:invalidate");
    assert_eq!(channel(&[("SAMOVAR_PREFIX", "app"), ("SAMOVAR_CHANNEL", "purge")]), "purge");
}

#[test]
fn every_way_to_name_a_database_names_its_channels() {
    let signal = |url| settings(&[("REDIS_URL", url)]).keys().signal_channel();
    let third = [
        "redis://cache/3",
        "redis://cache/3/",
        "redis://cache/03",
        "redis://cache?db=3",
        "redis://cache/3?db=4",
        "rediss://u:p@cache:7000/3",
        "valkey://[::1]/3",
        "unix:///run/redis.sock?db=3",
        "redis+unix:///run/redis.sock?user=u&db=3",
    ];
    for url in third {
        assert_eq!(signal(url), "samovar:db3:signal", "{url}");
    }
    for url in ["redis://cache", "redis://cache/", "redis://cache/0", "redis://cache/00", "unix:///run/redis.sock"] {
        assert_eq!(signal(url), "samovar:signal", "{url}");
    }
}

#[test]
fn redis_parts_count_only_without_a_url() {
    let parts = [("REDIS_HOST", "cache"), ("REDIS_DB", "3"), ("REDIS_PASSWORD", "p@ss/word")];
    let redis = settings(&parts).redis;
    assert_eq!(redis.to_string(), "redis://***@cache:6379/3");
    let client = redis.client().unwrap();
    assert_eq!(client.get_connection_info().redis_settings().password(), Some("p@ss/word"));
    let with_url = [&parts[..], &[("REDIS_URL", "redis://elsewhere")]].concat();
    assert_eq!(settings(&with_url).redis.to_string(), "redis://elsewhere:6379/0");
    assert_eq!(settings(&[("REDIS_PORT", "7000")]).redis.to_string(), "redis://127.0.0.1:7000/0");
}

#[test]
fn all_faults_are_reported_at_once_with_value_and_remedy() {
    let faults = faults(&[
        ("REDIS_URL", "http://cache"),
        ("SAMOVAR_CONCURRENCY", "0"),
        ("SAMOVAR_CLAIM", "30"),
        ("SAMOVAR_DRAIN", "soon"),
        ("SAMOVAR_MISSES", "maybe"),
        ("SAMOVAR_PREFIX", "{app}"),
        ("SAMOVAR_CHANNEL", "samovar:changed"),
        ("REDIS_CACHE_TTL", "0"),
        ("SAMOVAR_LOG", "samovar=loud"),
        ("SAMOVAR_LOG_FORMAT", "xml"),
        ("SAMOVAR_LISTEN", "7070"),
        ("SAMOVAR_HOSTS", "http://tea.example"),
        ("SAMOVAR_TOKEN", "hunter 2"),
    ]);
    assert!(!faults.concat().contains("hunter"), "{faults:?}");
    let expected = [
        "REDIS_URL: `http://cache` is of an unknown kind; write redis://, rediss:// or unix://, redis+sentinel:// or \
         redis+cluster://",
        "SAMOVAR_CONCURRENCY: `0` must be a whole number from 1 to 4096",
        "SAMOVAR_CLAIM: `30` has no unit; write `30s` for seconds",
        "SAMOVAR_DRAIN: `soon` is not a time; write `30s`, `5m` or `1h30m`",
        "SAMOVAR_MISSES: `maybe` must be `on` or `off`",
        "SAMOVAR_PREFIX: `{app}` may hold only letters, digits, `_`, `-`, `:` and `.`",
        "SAMOVAR_CHANNEL: `samovar:changed` is the channel of announced changes; choose another for invalidations",
        "REDIS_CACHE_TTL: `0` must be between 1s and 3650d",
        "SAMOVAR_LISTEN: `7070` is not an address; write `127.0.0.1:7070`, `0.0.0.0:7070` for all interfaces, `[::1]:7070`, or \
         `off`",
        "SAMOVAR_HOSTS: `http://tea.example` is not a list of names; write `samovar.example, 10.0.0.7`, without `http://`, \
         ports and wildcards",
        "SAMOVAR_TOKEN: may hold only letters, digits and signs of ASCII without spaces, as HTTP headers can carry them",
        "SAMOVAR_LOG: `samovar=loud` is not a log filter: `samovar=loud` is no directive; write a level such as \
         `info`, or `module=level`, separated by commas",
        "SAMOVAR_LOG_FORMAT: `xml` must be `text` or `json`",
    ];
    assert_eq!(faults, expected);
}

#[test]
fn a_claim_is_never_shorter_than_a_second() {
    assert_eq!(faults(&[("SAMOVAR_CLAIM", "900ms")]), ["SAMOVAR_CLAIM: `900ms` must be between 1s and 1d"]);
    assert_eq!(settings(&[("SAMOVAR_DRAIN", "0")]).drain, Duration::ZERO);
}

#[test]
fn the_default_ttl_is_a_time_or_seconds() {
    for (text, seconds) in [("3600", 3_600), ("1h", 3_600), ("1h30m", 5_400), ("1", 1)] {
        assert_eq!(settings(&[("REDIS_CACHE_TTL", text)]).default_ttl, Duration::from_secs(seconds), "{text}");
    }
    for text in ["-1", "900ms", "11y", "1.5", "an hour"] {
        assert_eq!(faults(&[("REDIS_CACHE_TTL", text)]).len(), 1, "{text}");
    }
}

#[test]
fn an_address_to_listen_on_may_be_named_or_refused() {
    let listen = |text| settings(&[("SAMOVAR_LISTEN", text)]).listen;
    assert_eq!(listen("off"), Listen::Off);
    assert_eq!(listen("localhost:0"), Listen::At(([127, 0, 0, 1], 0).into()));
    assert_eq!(listen("0.0.0.0:80"), Listen::At(([0, 0, 0, 0], 80).into()));
    assert_eq!(listen("[::1]:80").clone(), Listen::At("[::1]:80".parse().unwrap()));
}

#[test]
fn names_to_be_asked_by_are_separated_by_commas() {
    assert_eq!(settings(&[("SAMOVAR_HOSTS", " tea.example., ::1,,pot_2 ")]).hosts, ["tea.example", "::1", "pot_2"]);
    for wrong in ["*", "a:7070", "a/b", "a b", "."] {
        assert_eq!(faults(&[("SAMOVAR_HOSTS", wrong)]).len(), 1, "{wrong}");
    }
}

#[test]
fn a_port_from_kubernetes_is_explained() {
    let faults = faults(&[("REDIS_PORT", "tcp://10.0.0.1:6379")]);
    assert!(faults[0].contains("Kubernetes"), "{faults:?}");
}

#[test]
fn a_fault_in_the_file_is_named_by_its_line_and_not_shown() {
    let file = "# comment\n\nexport GOOD=1\nTOKEN = \"hunter2 and more\nSECOND=\"x\"\n";
    let error = environment(&[], file).unwrap_err();
    assert_eq!(error.faults.len(), 1, "{error}");
    assert!(error.to_string().contains(".env:4: "), "{error}");
    let error = environment(&[], "A=1\nhunter2 hunter2\nB='two\nlines'\nhunter2 hunter2\n").unwrap_err();
    let places: Vec<_> = error.faults.iter().map(|fault| fault.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["/.env:2", "/.env:5"]);
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn a_file_that_is_not_utf_8_is_named_by_the_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".env"), b"A=1\nB=hunter2\xff\n").unwrap();
    let error = Environment::gather([].into_iter(), &[folder.path().join(".env")], false).unwrap_err().to_string();
    assert!(error.contains(".env:2: not UTF-8") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_missing_file_is_no_fault_and_an_unreadable_one_is() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Environment::gather([].into_iter(), &[folder.path().join(".env")], false).is_ok());
    assert!(Environment::gather([].into_iter(), &[folder.path().to_owned()], false).is_err());
}

#[test]
fn the_file_may_have_a_byte_order_mark_and_no_last_newline() {
    let env = environment(&[], "\u{feff}FIRST=1\r\nLAST=2").unwrap();
    assert_eq!((env.get("FIRST").as_deref(), env.get("LAST").as_deref()), (Some("1"), Some("2")));
}

#[test]
fn nothing_that_is_printed_holds_a_secret() {
    let env: Environment =
        [("REDIS_URL", "redis://:hunter2@cache"), ("OPENAI_API_KEY", "hunter2"), ("SAMOVAR_TOKEN", "hunter2")]
            .into_iter()
            .collect();
    let common = CommonArgs { redis_url: Some("redis://:hunter2@cache/x".into()), ..CommonArgs::default() };
    let settings = Settings::resolve(&CommonArgs::default(), &WorkerArgs::default(), &env).unwrap();
    let error = Settings::resolve(&common, &WorkerArgs::default(), &env).unwrap_err();
    let printed = format!("{env:?} {common:?} {settings:?} {error} {error:?}");
    assert!(!printed.contains("hunter2"), "{printed}");
}

#[test]
fn a_variable_like_a_setting_is_told_with_the_nearest() {
    let env =
        [("SAMOVAR_TOKNE", "x"), ("SAMOVAR_LOG", "info"), ("SAMOVAR_XYZZY", "y"), ("REDIS_URL", ""), ("HOME", "/")];
    let services = ["SAMOVAR", "SAMOVAR_HTTP", "SAMOVAR_WORKER_2"].iter().flat_map(|service| {
        let ends = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_7070_TCP", "PORT_7070_TCP_ADDR"];
        ends.map(|end| (format!("{service}_{end}"), "x"))
    });
    let env: Environment = env.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(services).collect();
    let unknown: Vec<_> = env.unknown_settings().collect();
    assert_eq!(unknown, [("SAMOVAR_TOKNE", Some("SAMOVAR_TOKEN".to_owned())), ("SAMOVAR_XYZZY", None)]);
}

#[test]
fn the_list_of_settings_is_complete() {
    let names = include_str!("mod.rs").split("\"SAMOVAR_").skip(1).filter_map(|rest| rest.split('"').next());
    let names = names.filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
    let read: std::collections::BTreeSet<&str> = names.collect();
    assert_eq!(Vec::from_iter(read), environment::SETTINGS);
}

#[test]
fn of_several_files_the_last_counts_and_each_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let [base, local] = ["base", "local"].map(|name| folder.path().join(name));
    fs::write(&base, "SAMOVAR_PREFIX=base\nSAMOVAR_CLAIM=2s\n").unwrap();
    let read = |files: &[PathBuf]| Environment::gather([].into_iter(), files, true);
    let missing = read(&[base.clone(), local.clone()]).unwrap_err().to_string();
    assert!(missing.contains("local: cannot be read"), "{missing}");
    fs::write(&local, "SAMOVAR_PREFIX=local\n").unwrap();
    let env = read(&[base, local]).unwrap();
    assert_eq!(
        (env.get("SAMOVAR_PREFIX").as_deref(), env.get("SAMOVAR_CLAIM").as_deref()),
        (Some("local"), Some("2s"))
    );
}

#[test]
fn a_viewer_token_needs_another_one_beside_it() {
    let read = |variables: &[(&str, &str)]| settings(variables).viewer_token.map(|token| token.expose().to_owned());
    assert_eq!(read(&[("SAMOVAR_TOKEN", "owner"), ("SAMOVAR_VIEWER_TOKEN", "viewer")]), Some("viewer".to_owned()));
    for (token, what) in [("", "needs SAMOVAR_TOKEN"), ("viewer", "must differ")] {
        let found = faults(&[("SAMOVAR_TOKEN", token), ("SAMOVAR_VIEWER_TOKEN", "viewer")]);
        assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
    }
}
