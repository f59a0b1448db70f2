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
