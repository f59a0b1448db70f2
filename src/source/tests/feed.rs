//! Feeds.

use super::*;

#[tokio::test]
async fn feeds_name_entries_or_say_what_is_wrong() {
    let feed = |key: &str, answer: &'static str| {
        let job = format!(
            "key = \"{key}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/t/{{{{ name }}}}\"\n[entries]\nfeed = {{ upstream = \"up\", path = \"/popular\", select = \"/names\" }}\n"
        );
        async move {
            let server = answering(answer).await;
            let files = [
                ("upstreams.toml".to_owned(), format!("[up]\nurl = \"{}\"\n", server.url)),
                ("thing.toml".to_owned(), job),
            ];
            let jobs = Jobs::parse(&files, Duration::from_secs(60), &|_| None).unwrap();
            let sources = Sources::new(&jobs).unwrap();
            let names = sources.feed(jobs.jobs.values().next().unwrap()).await;
            assert_eq!(server.last().target, "/popular");
            names
        }
    };
    let named = feed("t:{name}", r#"{"names": ["b", "a/ğ", "b", ""]}"#).await.unwrap();
    let names: Vec<&str> = named.iter().map(|params| params["name"].as_str()).collect();
    assert_eq!(names[..3], ["b", "a/ğ", "b"]);
    let named = feed("t:{size}:{name}", r#"{"names": [{"size": "big", "name": "x:y", "rank": 1}]}"#).await.unwrap();
    assert_eq!(named, [Params::from([("size".into(), "big".into()), ("name".into(), "x:y".into())])]);
    for (key, answer, reason) in [
        ("t:{name}", r#"{"names": {"a": 1}}"#, "is an object, but a feed is an array"),
        ("t:{name}", r#"{"names": ["a", 7]}"#, "item 1 is a number"),
        ("t:{name}", r#"{"names": null}"#, "is null"),
        ("t:{size}:{name}", r#"{"names": [{"size": "a"}]}"#, "item 0 has no `name`"),
        ("t:{size}:{name}", r#"{"names": [{"size": 3, "name": "a"}]}"#, "item 0 has a number as `size`"),
        ("t:{size}:{name}", r#"{"names": ["a"]}"#, "item 0 is a string, but must be an object with size, name"),
        ("t:{name}", r#"["a"]"#, "has nothing at `/names`"),
    ] {
        match feed(key, answer).await {
            Err(FetchError::Answer(told)) => assert!(told.contains(reason), "{told}"),
            other => panic!("{other:?}"),
        }
    }
}
