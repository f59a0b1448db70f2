//! Requests to an HTTP service, and the values stored of its answers.

use super::*;

#[tokio::test]
async fn json_is_stored_as_it_was_written() {
    let text = " {\"b\" : 1e2, \"a\":123456789012345678901234567890, \"ö\":\"\\u00e7 ☕ \\u0000\"}\n";
    let (_server, bench) = http(text, "").await;
    assert_eq!(bench.value().await.json, text.trim());

    let text = "\u{feff}{\"data\": [0, {\"a/b\": {\"n\": 123456789012345678901234567890 , \"f\" : 1.10}}]}";
    let (_server, bench) = http(text, "select = \"/data/1/a~1b\"").await;
    assert_eq!(bench.value().await.json, "{\"n\": 123456789012345678901234567890 , \"f\" : 1.10}");
}

#[tokio::test]
async fn value_is_reshaped_and_judged() {
    let answer = r#"{"data": {"title": "T \"q\"", "id": 7, "error": null}}"#;
    let shape =
        "select = \"/data\"\nvalue = { title = \"{{ value.title }}\", id = \"{{ value.id }}\", who = \"{{ name }}\" }";
    let (_server, bench) = http(answer, shape).await;
    assert_eq!(bench.value().await.json, r#"{"title":"T \"q\"","id":7,"who":"x"}"#);
    let (_server, bench) = http(answer, "accept = \"{{ value.error is defined }}\"").await;
    assert!(bench.refused().await.contains("is refused by `accept`"));
    let (_server, bench) = http(answer, "value = \"{{ value.nothing.there }}\"").await;
    assert!(bench.refused().await.contains("`value`:"));
    let (_server, bench) = http(answer, "value = \"{{ value.data.error }}\"").await;
    assert!(bench.refused().await.contains("null"));
}

#[tokio::test]
async fn names_reach_the_upstream_whole() {
    let server = answering("{}").await;
    let names = [
        "Mona Lisa",
        "a/b",
        "../../etc",
        "100%",
        "%2F",
        "what?",
        "#1",
        "a&b=c",
        "1+1",
        "\"quoted\" 'twice'",
        "a:b",
        "{x} {{y}}",
        "...",
        "a\\b",
        "a;b,c",
        "Kaplumbağa Terbiyecisi",
        "神奈川沖浪裏",
        "🫖",
        "a\tb",
        "\u{202e}rtl",
        "~-_.",
        "[*]",
        "a@b",
        " x ",
    ];
    for (path, prefix) in [("/t/{{ name }}/end", "/t/"), ("/t?q={{ name }}&z=1", "/t?q=")] {
        let source = format!("[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"{path}\"");
        let mut bench = Bench::new(&server, &source, "");
        for name in names {
            bench.name = name.into();
            bench.value().await;
            let target = server.last().target;
            let encoded = target.strip_prefix(prefix).unwrap().trim_end_matches("/end").trim_end_matches("&z=1");
            let decoded = percent_encoding::percent_decode_str(encoded).decode_utf8().unwrap();
            assert_eq!(decoded, name, "{target}");
            assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)), "{target}");
        }
    }
}

#[tokio::test]
async fn names_that_no_url_can_carry_are_refused_not_confused() {
    let server = answering("{}").await;
    let mut bench = Bench::http(&server, "");
    for name in ["..", ".", "\u{0}"] {
        bench.name = name.into();
        if name == "\u{0}" {
            bench.value().await;
            assert_eq!(server.last().target, "/t/%00");
        } else {
            assert!(matches!(bench.fetch().await, Err(FetchError::Unrenderable(_))));
        }
    }
    assert_eq!(server.calls(), 1);
    let mut bench =
        Bench::new(&server, "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/t?name={{ name }}\"", "");
    bench.name = "..".into();
    bench.value().await;
    assert_eq!(server.last().target, "/t?name=..");
}

#[tokio::test]
async fn body_makes_it_a_post_and_headers_are_sent() {
    let server = answering("{}").await;
    let mut bench = Bench::new(
        &server,
        "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/search\"\nbody = { q = \"{{ name }}\", n = 3 }\nheaders = { X-Name = \"n-{{ name }}\" }",
        "headers = { Authorization = \"Bearer abc\" }",
    );
    bench.name = "ğ \"q\"".into();
    bench.value().await;
    let seen = server.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/search"));
    assert_eq!(serde_json::from_str::<Value>(&seen.body).unwrap(), json!({ "q": "ğ \"q\"", "n": 3 }));
    assert_eq!(seen.headers["content-type"], "application/json");
    assert_eq!(seen.headers["authorization"], "Bearer abc");
    assert_eq!(seen.headers["x-name"].as_bytes(), "n-ğ \"q\"".as_bytes());
    assert_eq!(seen.headers["user-agent"], concat!("samovar/", env!("CARGO_PKG_VERSION")));
    bench.name = "a\r\nX-Evil: 1".into();
    assert!(bench.refused().await.contains("line break"));
}

#[tokio::test]
async fn unchanged_is_believed_only_of_what_was_asked_the_same_way() {
    let server = Server::start(|seen| {
        let head = [("etag", "\"v1\""), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")];
        if seen.headers.contains_key("if-none-match") {
            (StatusCode::NOT_MODIFIED, head).into_response()
        } else {
            (head, "{\"v\": 1}").into_response()
        }
    })
    .await;
    let mut bench = Bench::http(&server, "");
    bench.known = Some(bench.value().await.validators);
    assert!(!server.last().headers.contains_key("if-none-match"));
    assert!(matches!(bench.fetch().await, Ok(Answer::Unchanged)));
    assert_eq!(server.last().headers["if-none-match"], "\"v1\"");
    assert_eq!(server.last().headers["if-modified-since"], "Sun, 06 Nov 1994 08:49:37 GMT");

    bench.inputs.insert("artwork".into(), json!("changed"));
    bench.value().await;
    bench.inputs.clear();
    let mut reshaped = Bench::http(&server, "value = { new = \"{{ value.v }}\" }");
    reshaped.known = bench.known.clone();
    assert_eq!(reshaped.value().await.json, "{\"new\":1}");

    let (_server, bench) = http(StatusCode::NOT_MODIFIED, "").await;
    assert!(bench.refused().await.contains("(status 304) is an answer to a conditional request"));
}
