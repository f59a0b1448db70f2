mod faults;
mod schema;

use super::*;
use crate::job::{AiFormat, Redirects, Source};
use proptest::prelude::*;
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3600);

fn environment(name: &str) -> Option<String> {
    Some(match name {
        "MUSEUM_URL" => "http://127.0.0.1:8600/".to_owned(),
        "OPENAI_BASE_URL" => "http://127.0.0.1:8600/v1".to_owned(),
        "OPENAI_API_KEY" => "sk-secret".to_owned(),
        _ => return None,
    })
}

#[test]
fn the_shipped_jobs_are_without_fault() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let jobs = match Jobs::load(&folder, HOUR, &environment) {
        Ok(jobs) => jobs,
        Err(faults) => panic!("{faults}"),
    };
    let names: Vec<&str> = jobs.jobs.keys().map(JobName::as_str).collect();
    assert_eq!(names, ["ai_artist_bio", "ai_story", "artwork_image", "artwork_info", "similar_artworks"]);
    let ttl = |name: &str| jobs.jobs[name].ttl.as_secs() / 3600;
    assert_eq!(names.iter().map(|name| ttl(name)).collect::<Vec<_>>(), [2, 2, 1, 2, 1]);
    assert_eq!(jobs.env, ["MUSEUM_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"].map(str::to_owned).into());

    let (info, params) = jobs.owner("artwork_info:Mona Lisa").unwrap();
    let Source::Http(source) = &info.sources[0] else { panic!("{info:?}") };
    assert_eq!(source.url.render_url(&json!(params)).unwrap(), "http://127.0.0.1:8600/artworks/Mona%20Lisa");
    assert_eq!(info.entries.list.len(), 2);

    let (story, params) = jobs.owner("ai_content:story:Mona Lisa").unwrap();
    let Source::Ai(source) = &story.sources[0] else { panic!("{story:?}") };
    assert_eq!(source.url.render_url(&json!({})).unwrap(), "http://127.0.0.1:8600/v1/chat/completions");
    let context = json!({"artwork_name": params["artwork_name"], "artwork": {"title": "Kaplumbağa <Terbiyecisi>"}});
    assert_eq!(
        source.prompt.render(&context).unwrap(),
        r#"Mona Lisa hakkında bir hikâye yaz. Bilinenler: {"title":"Kaplumbağa <Terbiyecisi>"}"#
    );
    assert_eq!(source.format, AiFormat::Text);
    assert_eq!(jobs.upstreams["openai"].headers["Authorization"], "Bearer sk-secret");
}

#[test]
fn options_that_ask_for_nothing_else_are_kept() {
    let source = "kind = \"ai\"\nurl = \"http://museum.test/v1/chat/completions\"\nmodel = \"m\"\nprompt = \"x\"\n\
                  options = { stream = false, n = 1, max_completion_tokens = 500, user = \"{{ env.OPENAI_API_KEY }}\" }";
    let job = GOOD.replace("kind = \"http\"\nurl = \"http://museum.test/{{ name }}\"", source);
    let jobs = parse(&[("upstreams.toml", UPSTREAM), ("art.toml", &job)]).unwrap();
    let Source::Ai(source) = &jobs.jobs["art"].sources[0] else { panic!("it is one") };
    let expected = json!({"stream": false, "n": 1, "max_completion_tokens": 500, "user": "sk-secret"});
    assert_eq!(json!(source.options), expected);
    assert_eq!(source.limit(), Some(("max_completion_tokens", 500)));
}

/// A job file without fault, with its lines; tests add to it or change it.
const GOOD: &str = r#"key = "art:{name}"
ttl = "1h"
[source]
kind = "http"
url = "http://museum.test/{{ name }}"
"#;

const UPSTREAM: &str = "[museum]\nurl = \"http://museum.test/api\"\n";

fn parse(files: &[(&str, &str)]) -> Result<Jobs, Faults> {
    let owned: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let jobs = Jobs::parse(&owned, HOUR, &environment);
    if jobs.is_ok() {
        schema::assert_accepted(files);
    }
    jobs
}

/// All faults, each as its first line and its help.
fn faults(files: &[(&str, &str)]) -> Vec<String> {
    match parse(files) {
        Ok(_) => Vec::new(),
        Err(faults) => faults
            .0
            .iter()
            .map(|fault| match &fault.help {
                Some(help) => format!("{fault} | {help}"),
                None => fault.to_string(),
            })
            .collect(),
    }
}

#[test]
fn a_composed_value_has_inputs_and_no_server() {
    let faults_of = |source: &str| {
        let page = format!(
            "key = \"page:{{name}}\"\n[inputs]\nart = \"art:{{name}}\"\n[source]\nkind = \"compose\"\n{source}\n"
        );
        faults(&[("art.toml", GOOD), ("page.toml", &page), ("upstreams.toml", UPSTREAM)])
    };
    let remedy = "a source of kind `compose` asks no server | remove it; the value is made from the job's inputs alone";
    let value = "value = \"{{ art }}\"";
    assert_eq!(faults_of(value), Vec::<String>::new());
    for field in ["url = \"http://museum.test/\"", "upstream = \"museum\"", "path = \"/\"", "headers = {}", "rate = 1"]
    {
        let name = field.split(' ').next().unwrap();
        assert_eq!(faults_of(&format!("{value}\n{field}")), [format!("page.toml:7:1: `{name}`: {remedy}")], "{field}");
    }
    let cases = [
        ("", r#"4:1: [source] has no `value` | add one, such as value = { artwork = "{{ artwork }}" }"#),
        (
            "value = \"{{ art \"",
            "6:13: `{{ art`: syntax error: unexpected end of input, expected end of variable block",
        ),
        (
            "value = { a = \"{{ arts }}\" }",
            "6:19: `arts` is not defined | did you mean `art`? known here: name, art and env.NAME",
        ),
        (
            "value = { a = \"{{ value }}\" }",
            "6:19: `value` is not defined | there is no answer yet where this stands; known here: name, art and env.NAME",
        ),
        (
            "value = \"{{ art }}\"\nlimit = 3",
            "7:1: unknown field `limit` in [source] | known here: fallback, kind, value",
        ),
    ];
    for (source, expected) in cases {
        assert_eq!(faults_of(source), [format!("page.toml:{expected}")], "{source}");
    }
}

#[test]
fn upstreams_have_faults_of_their_own() {
    let text = r#"
top = 1
[a]
rate = "fast"
[b]
url = "http://u:p@h"
concurrency = 0
timeout = "0s"
max_bytes = "1GiB"
tokens = "0/day"
redirects = "some"
colour = "red"
headers = { X = "{{ env.NOPE }}", Y = 1 }
[c]
url = "http://h/../x"
max_bytes = "much"
[d]
url = "http://h/?q"
[e]
url = "{{ name }}"
[f]
url = "not a url"
["g h"]
url = "http://h"
"#;
    let rate = r#"write an amount and a time, such as "20/second" or "5 per 2 hours""#;
    let expected = [
        "2:1: `top` is no upstream | begin an upstream with its name in brackets, such as [top], and write `url` below it".to_owned(),
        r#"3:1: [a] has no `url` | add one, such as url = "https://museum.example""#.to_owned(),
        format!("4:8: `fast` does not say in what time; {rate}"),
        "6:7: a URL must not hold a user or password, since URLs are logged; send them in `headers`, such as Authorization = \"Basic …\"".to_owned(),
        "7:15: `concurrency` (0) must be from 1 to 10000".to_owned(),
        "8:11: `timeout` (0s) must be at least 1ms".to_owned(),
        "9:13: `max_bytes` (1GiB) must be at most 512MiB".to_owned(),
        format!("10:10: `0/day` admits nothing; {}", rate.replace("20/second", "200000/day")),
        r#"11:13: `redirects` is "same-host", "public" or "any", not "some""#.to_owned(),
        "12:1: unknown field `colour` in [b] | known here: url, headers, rate, concurrency, timeout, max_bytes, tokens, redirects".to_owned(),
        "13:21: environment variable `NOPE` is not set | set NOPE in the environment or in `.env`".to_owned(),
        "13:39: `Y` must be a string, not an integer".to_owned(),
        "15:7: URL parsers cut the path segment `..` out; write the URL without it".to_owned(),
        r#"16:13: `much` is no size; write one such as "1MiB" or "200KB""#.to_owned(),
        "18:7: an upstream's URL has no `?` or `#`; they belong in a source's `path`".to_owned(),
        "20:11: `name` is not defined | only `env.NAME` may be used here".to_owned(),
        "22:7: no absolute URL: relative URL without a base".to_owned(),
        "23:2: `g h` is no name; use letters, digits, `_` and `-`".to_owned(),
    ];
    let files = [("jobs/upstreams.toml", text), ("jobs/a.toml", GOOD)];
    assert_eq!(faults(&files), expected.map(|line| format!("jobs/upstreams.toml:{line}")));
    schema::assert_refused(&files);
}

#[test]
fn all_files_are_read_to_their_end() {
    let other = GOOD.replace("art:{name}", "art:{kind}:{name}");
    assert_eq!(
        faults(&[
            ("jobs/b.toml", &other),
            ("jobs/a.toml", GOOD),
            ("jobs/c d.toml", "key ="),
            ("jobs/note.txt", "key =")
        ]),
        [
            "jobs/b.toml:1:7: the jobs `a` and `b` claim the same keys: `art:{name}` and `art:{kind}:{name}` overlap | let each key begin with text of its own",
            "jobs/c d.toml: a job is named after its file, and `c d` is no name; use letters, digits, `_` and `-` | rename the file",
            "jobs/c d.toml:1:6: not TOML: string values must be quoted, expected literal string",
        ]
    );
}

#[test]
fn a_number_with_a_leading_zero_is_to_be_a_string() {
    let job = format!("{GOOD}[entries]\nlist = [17000, 06011]\n");
    let told = faults(&[("a.toml", &job)]);
    let help = r#"write it as a string: "06011""#;
    assert!(told.len() == 1 && told[0].contains("leading zero") && told[0].ends_with(help), "{told:?}");
    for number in ["[entries]\nlist = [17000, -06]\n", "[entries]\nlist = [01.5]\n", "[warm]\nattempts = 05\n"] {
        let told = faults(&[("a.toml", &format!("{GOOD}{number}"))]);
        assert!(told.len() == 1 && told[0].ends_with("write it without the leading zero"), "{number}: {told:?}");
    }
}

#[test]
fn jobs_that_wait_for_each_other_are_named_in_a_row() {
    let job = |key: &str, input: &str| {
        GOOD.replace("art:{name}", &format!("{key}:{{name}}")) + &format!("[inputs]\nneeded = \"{input}:{{name}}\"\n")
    };
    assert_eq!(
        faults(&[("a.toml", &job("a", "b")), ("b.toml", &job("b", "c")), ("c.toml", &job("c", "b"))]),
        ["b.toml:7:10: jobs wait for each other: b → c → b | remove one of these inputs"]
    );
}

#[test]
fn an_input_that_a_job_covers_only_in_part_is_a_fault() {
    let narrow = GOOD.replace("art:{name}", "art:{name}:small");
    let wide = GOOD.replace("art:{name}", "b:{name}") + "[inputs]\nart = \"art:{name}\"\n";
    assert_eq!(
        faults(&[("a.toml", &narrow), ("b.toml", &wide)]),
        [
            "b.toml:7:7: no job warms `art:{name}`, which the input `art` asks for | `art:{name}:small` of the job `a` covers only some of them"
        ]
    );
}

#[test]
fn one_broken_file_does_not_accuse_the_others() {
    let wide = GOOD.replace("art:{name}", "b:{name}") + "[inputs]\nart = \"art:{name}\"\n";
    let asks = GOOD.replace("url = \"http://museum.test/{{ name }}\"", "upstream = \"museum\"\npath = \"/\"");
    let found =
        faults(&[("a.toml", &asks.replace("key =", "kee =")), ("b.toml", &wide), ("upstreams.toml", "[museum\n")]);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("this file has no `key`") && found[1].contains("unknown field `kee`"), "{found:?}");
    assert!(found[2].starts_with("upstreams.toml:1:8: not TOML"), "{found:?}");
}

#[test]
fn a_folder_without_job_files_is_one_fault() {
    assert_eq!(
        faults(&[("jobs/upstreams.toml", UPSTREAM)]),
        ["jobs: there is no job file | write one for each kind of content, such as artwork_info.toml"]
    );
    let missing = Jobs::load(Path::new("/nowhere/jobs"), HOUR, &environment).unwrap_err();
    assert_eq!(missing.0.len(), 1);
    assert!(missing.to_string().starts_with("/nowhere/jobs: the folder cannot be read: "), "{missing}");
}

#[test]
fn other_files_in_the_folder_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("a.toml", GOOD.as_bytes());
    write(".a.toml", b"no");
    write("a.toml.orig", b"no");
    write("README.md", b"no");
    std::fs::create_dir(folder.path().join("old.toml")).unwrap();
    assert_eq!(Jobs::load(folder.path(), HOUR, &environment).unwrap().jobs.len(), 1);
    write("b.toml", b"key = \"\xff\"");
    let faults = Jobs::load(folder.path(), HOUR, &environment).unwrap_err().to_string();
    assert!(faults.contains("b.toml: the file is not UTF-8; save it as such"), "{faults}");
}

#[test]
fn numbers_name_entries_as_their_text() {
    let list = "[entries]\nlist = [7, 0x1F, 1_000, -3, 1.50, \"7\"]\n";
    let jobs = parse(&[("a.toml", &(GOOD.to_owned() + list))]).unwrap();
    let names: Vec<&str> = jobs.jobs["a"].entries.list.iter().map(|params| params["name"].as_str()).collect();
    assert_eq!(names, ["7", "31", "1000", "-3", "1.50"]);
    let table = GOOD.replace("art:{name}", "art:{size}:{name}") + "[entries]\nlist = [{ size = 2, name = \"x\" }]\n";
    let jobs = parse(&[("a.toml", &table)]).unwrap();
    assert_eq!(jobs.jobs["a"].entries.list[0]["size"], "2");
}

#[test]
fn a_job_with_everything_is_read() {
    let text = r#"
description = "All there is"
key = "art:{size}:{name}"
ttl = "{{ env.LIFE }}"
tags = ["a:{{ value.artist }}", "b:{{ size }}"]
[inputs]
base = "base"
more = { key = "base", optional = true }
[source]
kind = "http"
url = "http://other.test/{{ size }}/{{ name }}?from={{ base.from }}&k={{ env.KEY }}"
headers = { X-Key = "{{ env.KEY }}-{{ name }}" }
select = "/data/0"
accept = "{{ value.ok }}"
body = { q = "{{ name }}", n = 5, l = [true, 1.5, 2026-01-01], all = "{{ base }}" }
value = ["{{ value.n }}", { t = "n={{ value.n }}" }]
[[source.fallback]]
kind = "http"
upstream = "museum"
path = "/x/{{ name }}"
[[source.fallback]]
kind = "ai"
url = "https://ai.test/v1/chat/completions"
model = "{{ env.MODEL }}"
prompt = "{{ name }}"
format = "json"
[entries]
list = [{ size = "s", name = "x" }, { name = "x", size = "s" }]
popular = 0x10
[entries.feed]
upstream = "museum"
path = "/popular?k={{ env.KEY }}"
[warm]
every = "30m"
refetch = true
ahead = "0s"
stale_if_error = "1d"
recheck = []
attempts = 2
"#;
    let base = GOOD.replace("art:{name}", "base").replace("{{ name }}", "").replace("ttl = \"1h\"", "");
    let upstreams =
        "[museum]\nurl = \"http://museum.test/api/\"\nredirects = \"any\"\nmax_bytes = \"2MB\"\ntokens = \"5/day\"\n";
    let files = [("all.toml", text), ("base.toml", &base), ("upstreams.toml", upstreams)];
    let files: Vec<_> = files.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let env = |name: &str| match name {
        "LIFE" => Some("2h".to_owned()),
        "KEY" => Some("k/y".to_owned()),
        "MODEL" => Some("m1".to_owned()),
        _ => None,
    };
    let jobs = match Jobs::parse(&files, HOUR, &env) {
        Ok(jobs) => jobs,
        Err(faults) => panic!("{faults}"),
    };
    let job = &jobs.jobs["all"];
    assert_eq!((job.ttl, job.tags.len(), job.inputs["base"].key.as_str()), (2 * HOUR, 2, "base"));
    assert_eq!(["base", "more"].map(|name| job.inputs[name].is_optional), [false, true]);
    assert_eq!((job.entries.list.len(), job.entries.popular), (1, 16));
    let warm = &job.warm;
    let refetches = warm.schedules.refetch_always();
    assert_eq!((refetches, warm.ahead, warm.stale_if_error), (true, Duration::ZERO, 24 * HOUR));
    assert_eq!((warm.recheck.as_slice(), warm.attempts), (&[] as &[Duration], 2));
    assert_eq!(warm.schedules.text().as_deref(), Some("every 30m (refetch)"));
    let [Source::Http(first), Source::Http(second), Source::Ai(third)] = job.sources.as_slice() else {
        panic!("{job:?}")
    };
    let context = json!({"size": "s", "name": "x y", "base": {"from": "ü"}, "value": {"n": 7, "ok": true}});
    assert_eq!(first.upstream.as_str(), "http://other.test");
    assert_eq!(first.url.render_url(&context).unwrap(), "http://other.test/s/x%20y?from=%C3%BC&k=k%2Fy");
    assert_eq!(first.headers["X-Key"].render(&context).unwrap(), "k/y-x y");
    assert_eq!(first.select.as_str(), "/data/0");
    assert!(first.accept.as_ref().unwrap().test(&context).unwrap());
    assert_eq!(
        first.body.as_ref().unwrap().render(&context).unwrap().to_string(),
        r#"{"q":"x y","n":5,"l":[true,1.5,"2026-01-01"],"all":{"from":"ü"}}"#
    );
    assert_eq!(first.value.as_ref().unwrap().render(&context).unwrap(), json!([7, {"t": "n=7"}]));
    assert_eq!(second.url.render_url(&context).unwrap(), "http://museum.test/api/x/x%20y");
    assert_eq!(
        (third.upstream.as_str(), third.model.as_str(), third.format),
        ("https://ai.test", "m1", AiFormat::Json)
    );
    let feed = job.entries.feed.as_ref().unwrap();
    assert_eq!((&feed.with, feed.item.len(), &feed.next), (&vec![Params::new()], 0, &None));
    assert_eq!(feed.url.render_url(&json!({})).unwrap(), "http://museum.test/api/popular?k=k%2Fy");
    let museum = &jobs.upstreams["museum"];
    assert_eq!((museum.max_bytes, museum.redirects), (2_000_000, Redirects::Any));
    assert_eq!(jobs.upstreams.len(), 4);

    let base = &jobs.jobs["base"];
    assert_eq!((base.ttl, base.entries.list.clone()), (HOUR, vec![Params::new()]));
    assert_eq!(
        (base.warm.ahead, base.warm.recheck.clone()),
        (HOUR / 10, [1, 3, 10, 30].map(Duration::from_secs).to_vec())
    );
    let longer = Jobs::parse(&files, 2 * HOUR, &env).unwrap();
    assert_ne!(longer.jobs["base"].digest, base.digest);
    assert_eq!(longer.jobs["all"].digest, job.digest);
}

#[test]
fn a_job_may_have_several_schedules() {
    let schedules = |warm: &str| {
        let jobs = parse(&[("a.toml", &format!("{GOOD}{warm}"))]).unwrap();
        jobs.jobs["a"].warm.schedules.clone()
    };
    let several = schedules(
        "[warm]\nahead = \"5m\"\n[[warm.schedules]]\nevery = \"15m\"\n[[warm.schedules]]\nschedule = \"0 4 * * *\"\n\
         timezone = \"Europe/Istanbul\"\nrefetch = true\n[[warm.schedules]]\nschedule = \"0 4 * * *\"\nrefetch = false\n",
    );
    assert_eq!(several.text().as_deref(), Some("every 15m; 0 4 * * * Europe/Istanbul (refetch); 0 4 * * *"));
    assert!(several.refetch_sometimes() && !several.refetch_always());
    let inline =
        schedules("[warm]\nschedules = [{ every = \"15m\", refetch = true }, { every = \"1h\", refetch = true }]\n");
    assert!(inline.refetch_always() && !inline.refetch_sometimes());
    let one = schedules("[[warm.schedules]]\nevery = \"15m\"\n");
    assert_eq!(one.text(), schedules("[warm]\nevery = \"15m\"\n").text());
    assert_eq!(schedules("[warm]\nrefetch = true\n").text(), None);
}

#[test]
fn an_absolute_url_belongs_to_the_upstream_it_lies_below() {
    let upstreams = "[all]\nurl = \"http://Museum.test:80/\"\n[api]\nurl = \"http://museum.test/api\"\n\
                     [twin]\nurl = \"http://twin.test\"\n[twin2]\nurl = \"http://twin.test/\"\n";
    for (url, upstream) in [
        ("http://museum.test/api/x", "api"),
        ("http://museum.test/api", "api"),
        ("http://museum.test/api?x={{ name }}", "api"),
        ("http://museum.test/api/{{ name }}", "api"),
        ("http://museum.test/api{{ name }}", "all"),
        ("http://museum.test/apis", "all"),
        ("http://museum.test/{{ name }}", "all"),
        ("HTTP://MUSEUM.test:80/x", "all"),
        ("https://museum.test/api/x", "https://museum.test"),
        ("http://museum.test:8080/api/x", "http://museum.test:8080"),
        ("{{ env.MUSEUM_URL }}/x/{{ name }}", "http://127.0.0.1:8600"),
        ("http://{{ env.HOST }}:81/", "http://h.test:81"),
    ] {
        let job = GOOD.replace("http://museum.test/{{ name }}", url);
        let files = [("a.toml".to_owned(), job), ("upstreams.toml".to_owned(), upstreams.to_owned())];
        let env = |name: &str| if name == "HOST" { Some("h.test".to_owned()) } else { environment(name) };
        let jobs = Jobs::parse(&files, HOUR, &env).unwrap();
        let Source::Http(source) = &jobs.jobs["a"].sources[0] else { panic!() };
        assert_eq!(source.upstream.as_str(), upstream, "{url}");
        assert!(jobs.upstreams.contains_key(upstream));
    }
    assert_eq!(
        faults(&[("a.toml", &GOOD.replace("museum.test", "twin.test")), ("upstreams.toml", upstreams)]),
        ["a.toml:5:7: the upstreams `twin` and `twin2` both hold for this URL; choose one with `upstream` and `path`"]
    );
}

#[test]
fn a_fault_in_a_text_of_many_lines_is_shown_where_it_is() {
    let job = GOOD.replace("url =", "body = \"\"\"\nBir \\\"ilk\\\" satır\n  ve {{ nme }}\"\"\"\nurl =");
    assert_eq!(
        faults(&[("a.toml", &job)]),
        ["a.toml:7:9: `nme` is not defined | did you mean `name`? known here: name and env.NAME"]
    );
}

#[test]
fn tables_may_be_written_with_dots() {
    let dotted = "key = \"a:{x}\"\nsource.kind = \"http\"\nsource.url = \"http://h/{{ x }}\"\nwarm.every = \"5m\"\n";
    assert_eq!(faults(&[("a.toml", dotted)]), [""; 0]);
    let incomplete = "key = \"a:{x}\"\n[source.value]\nx = \"1\"\n";
    assert_eq!(
        faults(&[("a.toml", incomplete)]),
        ["a.toml:2:2: [source] has no `kind` | add one, such as kind = \"http\""]
    );
}

proptest! {
    #[test]
    fn reading_any_text_never_panics(text in any::<String>()) {
        let _ = faults(&[("a.toml", &text), ("upstreams.toml", &text)]);
    }

    #[test]
    fn reading_a_damaged_file_never_panics(at in 0_usize..1200, length in 0_usize..40, with in "[\"'\\[\\]{}=.#\\\\\n a-f0-9é%|:]{0,6}") {
        let good = include_str!("../../../jobs/artwork_info.toml");
        let good: String = good.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
        let chars: Vec<char> = good.chars().collect();
        let start = at.min(chars.len());
        let end = (start + length).min(chars.len());
        let damaged: String = chars[..start].iter().copied().chain(with.chars()).chain(chars[end..].iter().copied()).collect();
        let upstreams = damaged.replace("[source]", "[museum]");
        if let Err(faults) = parse(&[("a.toml", &damaged), ("upstreams.toml", &upstreams)]) {
            prop_assert!(!faults.to_string().is_empty() && !faults.render(true).is_empty());
        }
    }
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    let deep = format!("{GOOD}value = {}1{}\n", "[".repeat(60), "]".repeat(60));
    assert_eq!(faults(&[("a.toml", &deep)]), ["a.toml:6:59: `value` is nested deeper than 50"]);
    let deeper = format!("{GOOD}value = {}1{}\n", "[".repeat(100_000), "]".repeat(100_000));
    assert!(!faults(&[("a.toml", &deeper)]).is_empty());
    let template = GOOD.replace("{{ name }}", &format!("{{{{ {}name{} }}}}", "(".repeat(100_000), ")".repeat(100_000)));
    assert!(!faults(&[("a.toml", &template)]).is_empty());
}

#[test]
fn an_audit_is_a_rate_of_jobs_that_cost_nothing() {
    let audit = |job: &str, text: &str| {
        let job = format!("{job}[warm]\naudit = \"{text}\"\n");
        let jobs = parse(&[("art.toml", &job), ("upstreams.toml", UPSTREAM)]);
        jobs.map(|jobs| jobs.jobs["art"].warm.audit).map_err(|faults| faults.0.len())
    };
    assert_eq!(audit(GOOD, "1/minute"), Ok(Some(Duration::from_secs(60))));
    assert_eq!(audit(GOOD, "5 per 10 minutes"), Ok(Some(Duration::from_secs(120))));
    assert_eq!(audit(GOOD, "10/second"), Ok(Some(Duration::from_millis(100))));
    for text in ["11/second", "0/minute", "often", ""] {
        assert_eq!(audit(GOOD, text), Err(1), "{text}");
    }
    let ai = "kind = \"ai\"\nurl = \"http://museum.test/v1/chat/completions\"\nmodel = \"m\"\nprompt = \"x\"";
    let ai = GOOD.replace("kind = \"http\"\nurl = \"http://museum.test/{{ name }}\"", ai);
    assert_eq!(audit(&ai, "1/minute"), Err(1));
}

#[test]
fn a_gone_guard_is_a_share_or_off() {
    let guard = |text: &str| {
        let job = format!("{GOOD}[warm]\n{text}\n");
        let jobs = parse(&[("art.toml", &job), ("upstreams.toml", UPSTREAM)]);
        jobs.map(|jobs| jobs.jobs["art"].warm.gone_guard).map_err(|faults| faults.0.len())
    };
    for (text, share) in [("", Some(10)), ("gone_guard = \"off\"", None), ("gone_guard = \" 1 % \"", Some(1))] {
        assert_eq!(guard(text), Ok(share), "{text}");
    }
    assert_eq!(guard("gone_guard = \"100%\""), Ok(Some(100)));
    for text in ["0%", "101%", "2.5%", "-1%", "10", "%", "", "OFF", "kapalı", "1000%", "no"] {
        assert_eq!(guard(&format!("gone_guard = \"{text}\"")), Err(1), "{text}");
    }
}
