//! The bundled museum as an upstream.

use super::*;

#[tokio::test]
async fn museum_answers_the_shipped_way() {
    let museum = crate::cli::museum::Museum::start(([127, 0, 0, 1], 0).into(), crate::cli::museum::Options::instant())
        .await
        .unwrap();
    let server = Server { url: museum.url(), seen: Arc::default(), _tasks: JoinSet::new() };
    let job = "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/artworks/{{ name }}\"\nselect = \"/data\"";
    let mut bench = Bench::new(&server, job, "");
    for name in museum.names() {
        bench.name = name;
        assert_eq!(bench.value().await.value()["title"], bench.name.as_str());
    }
    bench.known = Some(bench.value().await.validators);
    assert!(matches!(bench.fetch().await, Ok(Answer::Unchanged)));
    museum.edit(&bench.name).unwrap();
    assert_eq!(bench.value().await.value()["version"], 2);
    bench.name = "nobody knows".into();
    assert!(matches!(bench.fetch().await, Ok(Answer::Gone)));
    let ai = "[source]\nkind = \"ai\"\nurl = \"URL/v1/chat/completions\"\nmodel = \"m\"\nprompt = \"{{ name }}\"";
    let mut bench = Bench::new(&server, &ai.replace("URL", &server.url), "");
    bench.name = "Mona Lisa".into();
    assert!(bench.value().await.value().as_str().unwrap().starts_with("Mona Lisa: "));
}

#[tokio::test]
async fn shipped_jobs_are_answered_by_the_museum() {
    let museum = crate::cli::museum::Museum::start(([127, 0, 0, 1], 0).into(), crate::cli::museum::Options::instant())
        .await
        .unwrap();
    let env = |name: &str| match name {
        "MUSEUM_URL" => Some(museum.url()),
        "OPENAI_BASE_URL" => Some(format!("{}/v1", museum.url())),
        _ => Some("sk-none".to_owned()),
    };
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let jobs = Jobs::load(&folder, Duration::from_secs(3600), &env).unwrap_or_else(|faults| panic!("{:#?}", faults.0));
    let sources = Sources::new(&jobs).unwrap();
    assert!(jobs.jobs.len() >= 5);
    for job in jobs.jobs.values() {
        let mut entries = job.entries.list.clone();
        entries.extend(sources.feed(&jobs, job).await.unwrap());
        assert!(job.entries.feed.is_none() || entries.len() > 60, "{}", job.name);
        for params in entries {
            let inputs = job.inputs.keys().map(|name| (name.clone(), json!({ "title": "x" }))).collect();
            let key = job.key.write(&params).unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            let ask = Ask { job, source: 0, key: &key, params: &params, inputs: &inputs, known: None, deadline };
            let Answer::Value(fetched) = sources.fetch(&jobs, &ask).await.unwrap() else { panic!("{key}") };
            let context = context(&params, &inputs, Some(fetched.value()));
            for tag in &job.tags {
                assert!(!tag.render(&context).unwrap().is_empty());
            }
        }
    }
}
