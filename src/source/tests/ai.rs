//! AI sources: requests, answers and what they cost.

use super::*;

fn completion(text: &str, finish: &str) -> String {
    json!({
        "choices": [{ "message": { "role": "assistant", "content": text }, "finish_reason": finish }],
        "usage": { "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15 },
    })
    .to_string()
}

#[tokio::test]
async fn completions_are_asked_for_and_stored_as_json() {
    let server = answering(completion(" Bir \"hikâye\"\n", "stop")).await;
    let mut bench =
        Bench::ai(&server, "system = \"Kısa yaz.\"\ntemperature = 0.8\nmax_tokens = 200\nformat = \"text\"");
    bench.name = "神奈川沖浪裏".into();
    let fetched = bench.value().await;
    assert_eq!(fetched.json, r#""Bir \"hikâye\"""#);
    assert_eq!(fetched.tokens, 15);
    let seen = server.last();
    assert!(seen.target.ends_with("/chat/completions"), "{}", seen.target);
    let expected = json!({
        "model": "m",
        "messages": [
            { "role": "system", "content": "Kısa yaz." },
            { "role": "user", "content": "Tell of 神奈川沖浪裏" },
        ],
        "temperature": 0.8,
        "max_tokens": 200,
    });
    assert_eq!(serde_json::from_str::<Value>(&seen.body).unwrap(), expected);
}

#[tokio::test]
async fn same_prompt_is_not_paid_twice() {
    let server = answering(completion("text", "stop")).await;
    let mut bench = Bench::ai(&server, "");
    let unchanged = async |bench: &Bench| bench.with(async |ask| bench.sources.unchanged_without_asking(&ask)).await;
    assert!(!unchanged(&bench).await);
    bench.known = Some(bench.value().await.validators);
    assert!(unchanged(&bench).await);
    assert!(matches!(bench.fetch().await, Ok(Answer::Unchanged)));
    assert_eq!(server.calls(), 1);
    bench.name = "other".into();
    assert!(!unchanged(&bench).await);
    bench.value().await;
    for changed in ["temperature = 0.5", "max_tokens = 9", "system = \"s\""] {
        let mut other = Bench::ai(&server, changed);
        other.known = bench.known.clone();
        assert!(!unchanged(&other).await, "{changed}");
    }
}

#[tokio::test]
async fn answers_of_no_use_are_paid_for_all_the_same() {
    // The prompt's tokens, by estimate, in every case.
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Tell of x"}]}).to_string();
    let prompt = body.len().div_ceil(4) as u64;
    let told = |all| Spent::Tokens { prompt, all };
    let untold = Spent::Untold { prompt };
    let cases = [
        (completion("half a", "length"), "was cut off", told(15)),
        (completion("bad", "content_filter"), "content_filter", told(15)),
        (completion(" ", "stop"), "without text", told(15)),
        (r#"{"choices": []}"#.to_owned(), "without `choices`", told(prompt)),
        (r#"{"error": {"message": "overloaded"}}"#.to_owned(), "overloaded", told(prompt)),
        (r#"{"choices": 3, "usage": {"total_tokens": "9"}}"#.to_owned(), "without `choices`", told(9)),
        (r#"{"choices": [{"message": {"content": null, "refusal": "no"}, "finish_reason": "stop"}], "usage": {"total_tokens": 4}}"#.to_owned(), "refusal", told(4)),
        ("[]".to_owned(), "without `choices`", told(prompt)),
        ("<html>".to_owned(), "is HTML", untold),
        ("data: {}".to_owned(), "is not JSON", untold),
        (String::new(), "is empty", untold),
        (completion(&"long".repeat(1 << 20), "stop"), "`max_bytes`", untold),
    ];
    for (answer, reason, cost) in cases {
        let server = answering(answer).await;
        let bench = Bench::ai(&server, "");
        let refused = bench.refused().await;
        assert!(refused.contains(reason), "{refused}");
        let (_, spent) = bench.with(async |ask| bench.sources.fetch_counting(&ask).await).await;
        assert_eq!(spent, cost, "{reason}");
    }
    let server = answering(StatusCode::NOT_FOUND).await;
    assert!(Bench::ai(&server, "").refused().await.contains("no such model"));
}

#[tokio::test]
async fn only_what_an_upstream_may_have_made_is_paid_for() {
    let job = "[source]\nkind = \"ai\"\nupstream = \"up\"\nmodel = \"m\"\nprompt = \"Tell of {{ name }}\"\n";
    let spent = async |server: &Server| {
        let bench = Bench::new(server, job, "timeout = \"300ms\"");
        bench.with(async |ask| bench.sources.fetch_counting(&ask).await.1).await
    };
    for code in [301, 400, 401, 404, 410, 429, 500, 503] {
        let error = r#"{"error": {"message": "no"}, "usage": {"total_tokens": 0}}"#;
        let server = answering((StatusCode::from_u16(code).unwrap(), error.to_owned())).await;
        assert_eq!(spent(&server).await, Spent::Nothing, "{code}");
    }
    let gone = Server { url: answering("{}").await.url.clone(), seen: Arc::default(), _tasks: JoinSet::new() };
    let mut no_tls = Server::raw(b"", false).await;
    no_tls.url = no_tls.url.replace("http:", "https:");
    for server in [gone, no_tls] {
        assert_eq!(spent(&server).await, Spent::Nothing, "nobody was asked");
    }
    let late = Server::raw(b"", false).await;
    let closed = Server::raw(b"", true).await;
    let cut = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"a\": 1}", true).await;
    let stalled = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"a\"", false).await;
    for server in [late, closed, cut, stalled] {
        assert!(matches!(spent(&server).await, Spent::Untold { .. }));
    }
}

#[tokio::test]
async fn an_error_that_tells_usage_is_paid_for() {
    let usages = [
        (r#"{"error": {"message": "no"}, "usage": {"total_tokens": 15}}"#.to_owned(), 15),
        (r#"{"error": {"message": "no", "usage": {"prompt_tokens": "7", "completion_tokens": 4}}}"#.to_owned(), 11),
        (r#"{"detail": "no", "usage": {"output_tokens": 3, "input_tokens": 2}}"#.to_owned(), 5),
        (r#"{"error": "no", "usage": {"input_tokens": 6}}"#.to_owned(), 6),
        (completion("half a", "error"), 15),
    ];
    for code in [202, 400, 402, 404, 410, 413, 422, 429, 500, 503, 529] {
        for (body, all) in &usages {
            let server = answering((StatusCode::from_u16(code).unwrap(), body.clone())).await;
            let bench = Bench::ai(&server, "");
            let (answer, spent) = bench.with(async |ask| bench.sources.fetch_counting(&ask).await).await;
            assert!(answer.is_err(), "{code}");
            assert!(matches!(spent, Spent::Tokens { all: told, .. } if told == *all), "{code} {body}: {spent:?}");
        }
    }
    // A beginning tells nothing for certain.
    let long = format!(r#"{{"usage": {{"total_tokens": 15}}, "error": "{}"}}"#, "x".repeat(20 << 10));
    let server = answering((StatusCode::BAD_REQUEST, long)).await;
    let bench = Bench::ai(&server, "");
    let (_, spent) = bench.with(async |ask| bench.sources.fetch_counting(&ask).await).await;
    assert_eq!(spent, Spent::Nothing);
}

#[tokio::test]
async fn options_are_sent_and_are_what_a_value_is_made_from() {
    let server = answering(completion("text", "stop")).await;
    let options = "temperature = 0.5\noptions = { max_completion_tokens = 500, seed = 7, reasoning_effort = \"low\", \
                   stop = [\"\\n\", \"x\"], top_p = 0.5, response_format = { type = \"json_schema\", strict = true } }";
    let mut bench = Bench::ai(&server, options);
    bench.known = Some(bench.value().await.validators);
    let expected = json!({
        "model": "m",
        "messages": [{ "role": "user", "content": "Tell of x" }],
        "temperature": 0.5,
        "max_completion_tokens": 500,
        "seed": 7,
        "reasoning_effort": "low",
        "stop": ["\n", "x"],
        "top_p": 0.5,
        "response_format": { "type": "json_schema", "strict": true },
    });
    assert_eq!(serde_json::from_str::<Value>(&server.last().body).unwrap(), expected);
    assert!(matches!(bench.fetch().await, Ok(Answer::Unchanged)));
    for changed in [&options.replace("seed = 7", "seed = 8"), &options.replace("strict = true", "strict = false"), ""] {
        let mut other = Bench::ai(&server, changed);
        other.known = bench.known.clone();
        assert!(matches!(other.fetch().await, Ok(Answer::Value(_))), "{changed}");
    }
    // A table without options is none.
    let mut plain = Bench::ai(&server, "");
    plain.known = Some(plain.value().await.validators);
    let mut empty = Bench::ai(&server, "options = {}");
    empty.known = plain.known;
    assert!(matches!(empty.fetch().await, Ok(Answer::Unchanged)));
}

/// Else all that AI ever made would be generated again, and paid for.
#[tokio::test]
async fn without_options_values_keep_what_they_were_made_from() {
    let server = answering(completion("text", "stop")).await;
    let bench = Bench::ai(&server, "temperature = 0.8\nmax_tokens = 200");
    let made_from =
        br#"text {"model":"m","messages":[{"role":"user","content":"Tell of x"}],"temperature":0.8,"max_tokens":200}"#;
    let expected = format!("{:032x}", twox_hash::XxHash3_128::oneshot(made_from));
    assert_eq!(bench.value().await.validators.prompt, Some(expected));
}

#[tokio::test]
async fn limits_are_named_as_they_are_written() {
    let server = answering(completion("half a", "length")).await;
    for (source, named) in [
        ("max_tokens = 9", "`max_tokens` (9)"),
        ("options = { max_tokens = 9 }", "`max_tokens` (9)"),
        ("options = { max_completion_tokens = 9 }", "`max_completion_tokens` (9)"),
        ("", "the server's limit"),
    ] {
        let refused = Bench::ai(&server, source).refused().await;
        assert!(refused.contains(&format!("was cut off at {named}")), "{refused}");
    }
    let message =
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.";
    let server = answering((StatusCode::BAD_REQUEST, json!({"error": {"message": message}}).to_string())).await;
    let refused = Bench::ai(&server, "max_tokens = 9").refused().await;
    assert!(refused.contains("wants `options = { max_completion_tokens = 9 }`"), "{refused}");
    assert!(!Bench::ai(&server, "").refused().await.contains("wants"));
}

#[tokio::test]
async fn json_completions_must_be_json() {
    let format = "format = \"json\"";
    for (text, stored) in
        [("{\"a\": 1.0}", "{\"a\": 1.0}"), ("```json\n{\"a\": 1}\n```", "{\"a\": 1}"), ("```\n[1]\n```", "[1]")]
    {
        let server = answering(completion(text, "stop")).await;
        assert_eq!(Bench::ai(&server, format).value().await.json, stored);
    }
    for text in ["Sure! {\"a\": 1}", "```json\n{\"a\": 1}", "null", "```python\n{}\n```"] {
        let server = answering(completion(text, "stop")).await;
        let refused = Bench::ai(&server, format).refused().await;
        assert!(refused.contains("holds"), "{refused}");
    }
}
