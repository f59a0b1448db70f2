use super::*;
use crate::job::{AiFormat, Source};
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

/// A job file without fault, with its lines; tests add to it or change it.
const GOOD: &str = r#"key = "art:{name}"
ttl = "1h"
[source]
kind = "http"
url = "http://museum.test/{{ name }}"
"#;

const UPSTREAM: &str = "[museum]\nurl = \"http://museum.test/api\"\n";

fn parse(files: &[(&str, &str)]) -> Result<Jobs, Faults> {
    let files: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    Jobs::parse(&files, HOUR, &environment)
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
fn probe() {
    let cases: &[&str] = &[
        "key = ",
        "ttl = \"1h\"",
        "key = \"a:{b\"\nttl = 5\n[source]\nkind = \"http\"\nurl = \"http://h/{{ anything }}\"\n",
        &GOOD.replace("ttl =", "tll ="),
        &GOOD.replace("1h", "1 hour ago"),
        &GOOD.replace("\"1h\"", "3600"),
        &GOOD.replace("1h", "10ms"),
        &GOOD.replace("1h", "11 years"),
        &GOOD.replace("\"1h\"", "true"),
        &GOOD.replace("\"1h\"", "\"{{ env.NOPE }}\""),
        &GOOD.replace("{{ name }}", "{{ nam }}"),
        &GOOD.replace("{{ name }}", "{{ name.first }}"),
        &GOOD.replace("{{ name }}", "{{ value }}"),
        &GOOD.replace("{{ name }}", "{{ name | safe }}"),
        &GOOD.replace("{{ name }}", "{{ name | shout }}"),
        &GOOD.replace("{{ name }}", "{% include 'x' %}"),
        &GOOD.replace("{{ name }}", "\\u00e9{{ name "),
        &GOOD.replace("{{ name }}", "../{{ name }}#x"),
        &GOOD.replace("museum.test", "{{ name }}.test"),
        &GOOD.replace("museum.test", "user:pw@museum.test"),
        &GOOD.replace("http://museum.test", "{{ env.NOPE }}"),
        &GOOD.replace("http://museum.test", "ftp://museum.test"),
        &GOOD.replace("http://museum.test", "museum.test"),
        &GOOD.replace("\"http\"", "\"htpp\""),
        &GOOD.replace("url = \"http://museum.test/{{ name }}\"", ""),
        &GOOD.replace("url = \"http://museum.test/{{ name }}\"", "upstream = \"museun\"\npath = \"x\""),
        &GOOD.replace("url = \"http://museum.test/{{ name }}\"", "upstream = \"museum\""),
        &GOOD.replace("url =", "upstream = \"museum\"\nurl ="),
        &GOOD.replace("url =", "path = \"/x\"\nurl ="),
        &(GOOD.to_owned() + "select = \"data.x\"\naccept = \"value.ok\"\nprompt = \"x\"\n"),
        &(GOOD.to_owned() + "select = \"/a~b\"\nheaders = { \"A B\" = \"x\", a = \"1\", A = \"{{ x }}\" }\nvalue = { a = [\"{{ valu.x }}\"] }\n"),
        &(GOOD.to_owned() + "fallback = [{ kind = \"ai\" }, { kind = \"http\", url = \"http://x/\", fallback = [] }]\n"),
        &(GOOD.to_owned() + "[entries]\nlist = [\"a\", \"\", 5, { nme = \"x\" }, {}, {name = \"\"}, \"a\"]\npopular = -1\nfeed = { url = \"http://x/{{ name }}\" }\nfed = 1\n"),
        &(GOOD.to_owned() + "[warm]\nschedule = \"61 * * * *\"\ntimezone = \"Europe/Instanbul\"\nahead = \"90m\"\nattempts = 0\nrefetch = \"yes\"\n"),
        &(GOOD.to_owned() + "[warm]\nschedule = \"* * * * *\"\nevery = \"5m\"\n"),
        &(GOOD.to_owned() + "[warm]\nevery = \"5ms\"\ntimezone = \"UTC\"\n"),
        &(GOOD.to_owned() + "[warm]\nschedule = \"0 0 30 2 *\"\n"),
        &(GOOD.to_owned() + "[inputs]\nname = \"art:{name}\"\nother = \"art:{nam}\"\nenv = \"art:{name}\"\nlost = \"lost:{name}\"\n"),
        &GOOD.replace("art:{name}", "samovar:{name}"),
        &GOOD.replace("art:{name}", "{name}"),
        &GOOD.replace("ttl = \"1h\"", "ttl = \"1h\"\ntags = [\"a:{{ value.x \"]"),
    ];
    for case in cases {
        println!("-----\n{}", parse(&[("jobs/a.toml", case), ("jobs/upstreams.toml", UPSTREAM)]).err().map(|f| f.to_string()).unwrap_or_default());
    }
}
