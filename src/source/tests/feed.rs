//! Feeds.

use super::*;

/// Asks the feed of a job with this key, whose answers a server gives by the request's target.
async fn feed(
    key: &str,
    fields: &str,
    answer: impl Fn(&str) -> String + Clone + Send + Sync + 'static,
) -> (Server, Result<Fed, FetchError>) {
    let server = Server::start(move |seen: &Seen| Response::new(Body::from(answer(&seen.target)))).await;
    let job = format!(
        "key = \"{key}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/t/{{{{ name }}}}\"\n\
         [entries.feed]\nupstream = \"up\"\npath = \"/popular?sort=up\"\nselect = \"/names\"\n{fields}\n"
    );
    let files =
        [("upstreams.toml".to_owned(), format!("[up]\nurl = \"{}\"\n", server.url)), ("thing.toml".to_owned(), job)];
    let jobs = Jobs::parse(&files, Duration::from_secs(60), &|_| None).unwrap_or_else(|faults| panic!("{faults}"));
    let sources = Sources::new(&jobs).unwrap();
    let fed = sources.feed(jobs.jobs.values().next().unwrap()).await;
    (server, fed)
}

/// As [`feed`], with one answer, to the only request.
async fn answered(key: &str, fields: &str, answer: &'static str) -> Result<Fed, FetchError> {
    let (server, fed) = feed(key, fields, |_| answer.to_owned()).await;
    assert_eq!((server.last().target.as_str(), server.calls()), ("/popular?sort=up", 1));
    fed
}

/// Returns the keys that a feed names.
fn keys(fed: &Fed) -> Vec<&str> {
    fed.entries.iter().collect()
}

#[tokio::test]
async fn items_of_each_shape_name_entries() {
    let item = "item = { name = \"{{ value.info.id }}\" }";
    let sized = "item = { name = \"{{ value.id }}-{{ value.no }}\", size = \"{{ value.size }}\" }";
    let crossed = "with = { size = [\"s\", \"m\", 3, \"s\"] }";
    let cases: [(&str, &str, &'static str, &[&str]); 8] = [
        ("t:{name}", "", r#"{"names": ["b", "a/ğ", "b"]}"#, &["t:b", "t:a/ğ"]),
        (
            "t:{name}",
            "",
            r#"{"names": [7, -0, 1.50, 1e3, 123456789012345678901234567890, "7"]}"#,
            &["t:7", "t:-0", "t:1.50", "t:1e3", "t:123456789012345678901234567890"],
        ),
        (
            "t:{size}:{name}",
            "",
            r#"{"names": [{"size": 3, "name": "x:y", "rank": 1}, {"name": 2.0, "size": "big"}]}"#,
            &["t:3:x:y", "t:big:2.0"],
        ),
        ("t:{name}", "", r#"{"names": [{"name": 12, "other": null}]}"#, &["t:12"]),
        ("t:{name}", item, r#"{"names": [{"info": {"id": 7}}, {"info": {"id": "ğ"}}]}"#, &["t:7", "t:ğ"]),
        ("t:{size}:{name}", sized, r#"{"names": [{"id": 1, "no": "x", "size": 2}]}"#, &["t:2:1-x"]),
        ("t:{size}:{name}", crossed, r#"{"names": [1, "b"]}"#, &["t:s:1", "t:m:1", "t:3:1", "t:s:b", "t:m:b", "t:3:b"]),
        ("t:{size}:{name}", crossed, r#"{"names": [{"name": 1, "size": "x"}]}"#, &["t:s:1", "t:m:1", "t:3:1"]),
    ];
    for (key, fields, answer, expected) in cases {
        let fed = answered(key, fields, answer).await.unwrap();
        assert_eq!(keys(&fed), expected, "{fields} {answer}");
        assert_eq!((fed.skipped, fed.first_skipped), (0, None), "{fields} {answer}");
    }
}

#[tokio::test]
async fn an_item_that_names_no_entry_is_skipped_and_told() {
    let item = "item = { name = \"{{ value.id }}\" }";
    let cases: [(&str, &str, &'static str, usize, &str); 14] = [
        ("t:{name}", "", r#"{"names": ["a", null, "", true]}"#, 3, "item 2 is null, but must be text or a number"),
        ("t:{name}", "", r#"{"names": ["", "a"]}"#, 1, "item 1 is an empty string"),
        ("t:{name}", "", r#"{"names": ["a", ["b"]]}"#, 1, "item 2 is an array"),
        ("t:{name}", "", r#"{"names": ["a", {"id": 1}]}"#, 1, "item 2 has no `name`: see `item`"),
        ("t:{name}", "", r#"{"names": ["a", {"name": null}]}"#, 1, "item 2 has null as `name`"),
        ("t:{name}", item, r#"{"names": [{"id": "a"}, {"id": false}]}"#, 1, "item 2 gives a boolean as `name`"),
        ("t:{name}", item, r#"{"names": [{"id": "a"}, {"no": 1}]}"#, 1, "item 2 gives no `name`: "),
        ("t:{name}", item, r#"{"names": [{"id": "a"}, null]}"#, 1, "item 2 gives no `name`: "),
        ("t:{name}:x", "with = {}", r#"{"names": [7, {"name": {}}]}"#, 1, "item 2 has an object as `name`"),
        (
            "t:{name}",
            item,
            r#"{"names": [{"id": 18446744073709551615, "no": 123456789012345678901}, {"id": 123456789012345678901}]}"#,
            1,
            "item 2 gives a number of more than 64 bits as `name`",
        ),
        (
            "t:{name}",
            "item = { name = \"p-{{ value.id }}\" }",
            r#"{"names": [{"no": 1e30, "id": 123456789012345678901}, {"id": -9223372036854775807}]}"#,
            1,
            "item 1 gives a number of more than 64 bits as `name`",
        ),
        (
            "t:{size}:{name}",
            "with = { size = [\"s\", \"a:b\", \"c:d\"] }",
            r#"{"names": [1]}"#,
            2,
            "item 1 makes no key",
        ),
        ("t:{size}:{name}", "with = { size = [\"s\", \"a:b\"] }", r#"{"names": [1, null]}"#, 2, "item 1 makes no key"),
        (
            "t:{size}:{name}",
            "",
            r#"{"names": [{"size": "a:b", "name": 1}, {"size": 1, "name": 1}]}"#,
            1,
            r#"item 1 makes no key of `t:{size}:{name}`; it begins: {"size": "a:b""#,
        ),
    ];
    for (key, fields, answer, skipped, first) in cases {
        let fed = answered(key, fields, answer).await.unwrap();
        assert_eq!((fed.entries.len(), fed.skipped), (1, skipped), "{answer}");
        let told = fed.first_skipped.unwrap();
        assert!(told.starts_with(first), "{answer}: {told}");
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_used_is_told_as_such() {
    let cases: [(&str, &'static str, &str); 7] = [
        ("t:{name}", r#"{"names": {"a": 1}}"#, "is an object, but a feed is an array: see `select`"),
        ("t:{name}", r#"{"names": null}"#, "is null"),
        ("t:{name}", r#"["a"]"#, "has nothing at `/names`"),
        ("t:{name}", "<html>", "is HTML or XML, not JSON"),
        ("t:{name}", r#"{"names": [null]}"#, "answered with 1 item, and none names an entry: item 1 is null"),
        ("t:{size}:{name}", r#"{"names": ["a", 1]}"#, "item 1 is a string, but must be an object with size, name"),
        ("t:{name}", r#"{"names": ["a", 1e999]}"#, "is not JSON"),
    ];
    for (key, answer, reason) in cases {
        let error = answered(key, "", answer).await.unwrap_err();
        let told = error.of_feed();
        assert!(told.starts_with("answered with something unusable: "), "{told}");
        assert!(told.contains(reason), "{told}");
    }
    assert_eq!(answered("t:{name}", "", r#"{"names": []}"#).await.unwrap(), Fed::default());
}

#[tokio::test]
async fn a_feed_has_a_longest_body_of_its_own() {
    let text = format!("{{\"names\": [\"a\", \"b\", \"a\"]{}}}", " ".repeat(2 << 20));
    let long = move |_: &str| text.clone();
    assert_eq!(keys(&feed("t:{name}", "", long.clone()).await.1.unwrap()), ["t:a", "t:b"], "longer than an entry's");
    let refused = feed("t:{name}", "max_bytes = \"2MiB\"", long).await.1.unwrap_err();
    assert!(refused.of_feed().contains("longer than the feed's `max_bytes` (2.0 MiB)"), "{}", refused.of_feed());
}

#[tokio::test]
async fn pages_are_read_by_url_or_by_cursor() {
    let by_url = |target: &str| match target {
        "/popular?sort=up" => r#"{"names": [1], "page": {"next": "?page=2#x"}}"#.to_owned(),
        "/popular?page=2" => r#"{"names": [2, null], "page": {"next": "/more?page=3"}}"#.to_owned(),
        "/more?page=3" => r#"{"names": [], "page": {}}"#.to_owned(),
        other => panic!("{other}"),
    };
    let (server, fed) = feed("t:{name}", "next = \"/page/next\"", by_url).await;
    let fed = fed.unwrap();
    assert_eq!((keys(&fed), fed.skipped, server.calls()), (vec!["t:1", "t:2"], 1, 3));
    assert!(fed.first_skipped.unwrap().starts_with("item 2 of page 2 is null"));

    let by_cursor = |target: &str| match target {
        "/popular?sort=up" => r#"{"names": [1], "next": "a b&c=/http://x"}"#.to_owned(),
        "/popular?sort=up&after=a+b%26c%3D%2Fhttp%3A%2F%2Fx" => r#"{"names": [2], "next": 17}"#.to_owned(),
        "/popular?sort=up&after=17" => r#"{"names": [3], "next": null}"#.to_owned(),
        other => panic!("{other}"),
    };
    let (_, fed) = feed("t:{name}", "next = \"/next\"\nnext_param = \"after\"", by_cursor).await;
    assert_eq!(keys(&fed.unwrap()), ["t:1", "t:2", "t:3"]);
}

#[tokio::test]
async fn a_next_page_is_asked_only_where_the_feed_is() {
    let cases = [
        (r#""http://127.0.0.2:9/x""#, "not at http://127.0.0.1:"),
        (r#""//127.0.0.2/x""#, "not at http://127.0.0.1:"),
        (r#""/\\127.0.0.2/x""#, "not at http://127.0.0.1:"),
        (r#""https://127.0.0.1/x""#, "not at http://127.0.0.1:"),
        (r#""ftp://127.0.0.1/x""#, "has no URL at `/next`: set `next_param`"),
        (r#""eyJpZCI6MX0""#, "has no URL at `/next`: set `next_param`"),
        ("17", "has a number at `/next`, which names no page"),
        ("{}", "has an object at `/next`, which names no page"),
        (r#""/popular?sort=up""#, "has a `next` that names a page that was already read"),
    ];
    for (next, reason) in cases {
        let answer = format!(r#"{{"names": [1], "next": {next}}}"#);
        let (server, fed) = feed("t:{name}", "next = \"/next\"", move |_| answer.clone()).await;
        let told = fed.unwrap_err().to_string();
        assert!(told.contains(reason), "{next}: {told}");
        assert_eq!(server.calls(), 1, "{next}");
    }
    let host = "http://user:pass@";
    let (server, fed) =
        feed("t:{name}", "next = \"/next\"", move |_| format!(r#"{{"names": [], "next": "{host}127.0.0.1/"}}"#)).await;
    assert!(fed.unwrap_err().to_string().contains("not asked"), "credentials");
    assert_eq!(server.calls(), 1);
}

#[tokio::test]
async fn a_feed_without_a_last_page_is_refused() {
    let endless = |target: &str| {
        let page: u32 = target.split_once("page=").map_or(0, |(_, page)| page.parse().unwrap());
        format!(r#"{{"names": [{page}], "next": "?page={}"}}"#, page + 1)
    };
    let (server, fed) = feed("t:{name}", "next = \"/next\"", endless).await;
    let told = fed.unwrap_err().to_string();
    assert!(told.contains("has more than 1000 pages"), "{told}");
    assert_eq!(server.calls(), 1_000);
}
