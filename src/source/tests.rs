use super::*;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::json;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What a server was asked.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    /// Path and query as they stood in the request line.
    target: String,
    headers: HeaderMap,
    body: String,
}

/// A server that answers what a test wants; closes with it.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(answer: impl Fn(&Seen) -> Response + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let handler = async move |request: Request<Body>| {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            let seen = Seen {
                method: head.method.to_string(),
                target: head.uri.to_string(),
                headers: head.headers,
                body: String::from_utf8(body.to_vec()).unwrap(),
            };
            log.lock().unwrap().push(seen.clone());
            answer(&seen)
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, axum::Router::new().fallback(handler)).await.unwrap() });
        Self { url, seen, _tasks: tasks }
    }

    /// One that writes these bytes to whoever comes, and then closes, or not.
    async fn raw(bytes: &'static [u8], close: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(bytes).await;
                if !close {
                    open.push(stream);
                }
            }
        });
        Self { url, seen: Arc::default(), _tasks: tasks }
    }

    fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }

    fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

/// One job, `thing:{name}`, and what asks for it.
struct Bench {
    jobs: Jobs,
    sources: Sources,
    name: String,
    inputs: Map<String, Value>,
    known: Option<Validators>,
    deadline: Duration,
}

impl Bench {
    fn new(server: &Server, job: &str, upstream: &str) -> Self {
        let env = |_: &str| None;
        let files = [
            ("upstreams.toml".to_owned(), format!("[up]\nurl = \"{}\"\n{upstream}\n", server.url)),
            ("thing.toml".to_owned(), format!("key = \"thing:{{name}}\"\nttl = \"1h\"\n{job}\n")),
        ];
        let jobs =
            Jobs::parse(&files, Duration::from_secs(3600), &env).unwrap_or_else(|faults| panic!("{:#?}", faults.0));
        let sources = Sources::new(&jobs).unwrap();
        Self { jobs, sources, name: "x".into(), inputs: Map::new(), known: None, deadline: Duration::from_secs(30) }
    }

    fn http(server: &Server, source: &str) -> Self {
        Self::new(
            server,
            &format!("[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/t/{{{{ name }}}}\"\n{source}"),
            "",
        )
    }

    fn ai(server: &Server, source: &str) -> Self {
        let job = "[source]\nkind = \"ai\"\nupstream = \"up\"\nmodel = \"m\"\nprompt = \"Tell of {{ name }}\"\n";
        Self::new(server, &format!("{job}{source}"), "")
    }

    fn again(&self) -> Self {
        Self {
            jobs: self.jobs.clone(),
            sources: self.sources.clone(),
            name: self.name.clone(),
            inputs: self.inputs.clone(),
            known: self.known.clone(),
            deadline: self.deadline,
        }
    }

    fn job(&self) -> &Arc<Job> {
        self.jobs.jobs.values().next().unwrap()
    }

    async fn fetch(&self) -> Result<Answer, FetchError> {
        self.with(async |ask| self.sources.fetch(&self.jobs, &ask).await).await
    }

    async fn with<T>(&self, f: impl AsyncFnOnce(Ask<'_>) -> T) -> T {
        let params = Params::from([("name".into(), self.name.clone())]);
        let key = EntryKey::new(format!("thing:{}", self.name));
        f(Ask {
            job: self.job(),
            source: 0,
            key: &key,
            params: &params,
            inputs: &self.inputs,
            known: self.known.as_ref(),
            deadline: Instant::now() + self.deadline,
        })
        .await
    }

    async fn value(&self) -> Fetched {
        match self.fetch().await {
            Ok(Answer::Value(fetched)) => {
                assert_eq!(serde_json::from_str::<Value>(&fetched.json).unwrap(), fetched.value());
                fetched
            }
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&self) -> String {
        match self.fetch().await {
            Err(FetchError::Answer(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    async fn upstream_failed(&self) -> String {
        match self.fetch().await {
            Err(FetchError::Upstream(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }
}

async fn answering(answer: impl IntoResponse + Clone + Send + Sync + 'static) -> Server {
    Server::start(move |_| answer.clone().into_response()).await
}

/// GET of a server that always answers this.
async fn http(answer: impl IntoResponse + Clone + Send + Sync + 'static, source: &str) -> (Server, Bench) {
    let server = answering(answer).await;
    let bench = Bench::http(&server, source);
    (server, bench)
}

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
            bench.refused().await;
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
    assert!(bench.refused().await.contains("(status 304) comes without having been asked for"));
}

#[tokio::test]
async fn statuses_mean_what_they_should() {
    for code in [404, 410] {
        let (_server, bench) = http(StatusCode::from_u16(code).unwrap(), "").await;
        assert!(matches!(bench.fetch().await, Ok(Answer::Gone)));
    }
    for code in [500, 502, 503, 504, 599, 408, 401] {
        let (_server, bench) = http((StatusCode::from_u16(code).unwrap(), "oh  no\n"), "").await;
        let reason = bench.upstream_failed().await;
        assert!(reason.contains(&code.to_string()) && reason.ends_with("oh no"), "{reason}");
    }
    for code in [400, 403, 422, 300] {
        let (_server, bench) = http((StatusCode::from_u16(code).unwrap(), "{}"), "").await;
        assert!(bench.refused().await.contains(&code.to_string()));
    }
}

#[tokio::test]
async fn of_all_successes_only_200_203_and_201_to_a_body_count() {
    let server = Server::start(|seen| {
        let code: u16 = seen.target.rsplit('/').next().unwrap().parse().unwrap();
        (StatusCode::from_u16(code).unwrap(), "{\"status\": \"pending\"}").into_response()
    })
    .await;
    for (body, counting) in [("", &[200, 203][..]), ("body = { q = 1 }", &[200, 201, 203])] {
        let mut bench = Bench::http(&server, body);
        for code in 200..300 {
            bench.name = code.to_string();
            if counting.contains(&code) {
                bench.value().await;
                continue;
            }
            let refused = bench.refused().await;
            assert!(refused.contains(&format!("(status {code}) is not the resource's value")), "{refused}");
            // This has no body, whatever the server sends.
            assert_eq!(refused.ends_with("pending\"}"), code != 204, "{refused}");
        }
    }
}

#[tokio::test]
async fn a_refusal_says_why_in_one_line_and_bounded() {
    for code in [202, 400, 401, 403, 429, 500, 503] {
        let text = format!("{{\"message\":\n \"told why\"}}\u{1b}[2J {}", "é".repeat(20_000));
        let (_server, bench) = http((StatusCode::from_u16(code).unwrap(), [("retry-after", "7")], text), "").await;
        let reason = bench.fetch().await.unwrap_err().to_string();
        assert!(reason.contains("told why") && reason.contains(&code.to_string()), "{reason}");
        assert!(!reason.contains(char::is_control) && reason.chars().count() < 400, "{reason}");
    }
    let coded = ([("content-encoding", "X-GZIP")], gzip(b"{\"message\": \"told why\"}"));
    let (_server, bench) = http((StatusCode::FORBIDDEN, coded.0, coded.1.clone()), "").await;
    assert!(bench.refused().await.ends_with("told why\"}"));
    let (_server, bench) = http((StatusCode::FORBIDDEN, coded.0, coded.1[..30].to_vec()), "").await;
    assert!(bench.refused().await.contains("it begins: {\"message\""));
    let (_server, bench) = http((StatusCode::FORBIDDEN, [("content-encoding", "br")], "xyz"), "").await;
    assert!(bench.refused().await.contains("(status 403) refuses us"));
}

#[tokio::test]
async fn a_refusal_counts_also_if_its_body_never_ends() {
    let hanging = Server::raw(b"HTTP/1.1 429 No\r\nRetry-After: 9\r\nContent-Length: 99\r\n\r\nslow down", false).await;
    let job = "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/t/{{ name }}\"";
    match Bench::new(&hanging, job, "timeout = \"500ms\"").fetch().await {
        Err(FetchError::Busy(wait, reason)) => {
            assert_eq!(wait, Duration::from_secs(9));
            assert!(reason.ends_with("(status 429) asks to wait 9s; it begins: slow down"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_refused_account_is_told_from_a_busy_upstream() {
    let spent = "{\"error\": {\"message\": \"check your plan\", \"code\": \"insufficient_quota\"}}";
    for (code, after, body, least) in
        [(429, None, spent, 5), (429, Some("99"), spent, 99), (402, None, "pay", 0), (403, None, spent, 0)]
    {
        let mut headers = HeaderMap::new();
        headers.extend(after.map(|after| (axum::http::header::RETRY_AFTER, after.parse().unwrap())));
        let answer = (StatusCode::from_u16(code).unwrap(), headers, body);
        let server = answering(answer).await;
        for bench in [Bench::http(&server, ""), Bench::ai(&server, "")] {
            match bench.fetch().await {
                Err(FetchError::Refused(wait, reason)) => {
                    assert_eq!(wait.as_secs(), least);
                    assert!(reason.contains("refuses this account") && reason.contains(&body[..3]), "{reason}");
                }
                other => panic!("{code}: {other:?}"),
            }
        }
    }
    let limited = "{\"error\": {\"code\": \"rate_limit_exceeded\"}}";
    let (_server, bench) = http((StatusCode::TOO_MANY_REQUESTS, limited), "").await;
    assert!(matches!(bench.fetch().await, Err(FetchError::Busy(..))));
}

#[tokio::test]
async fn busy_upstreams_say_for_how_long() {
    let date = |seconds: i64| {
        let at = chrono::DateTime::from_timestamp(1_000_000_000 + seconds, 0).unwrap();
        at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
    };
    let cases = [
        (429, None, Some(5)),
        (429, Some("7".to_owned()), Some(7)),
        (429, Some("0".to_owned()), Some(1)),
        (429, Some("99999999".to_owned()), Some(3600)),
        (429, Some("soon".to_owned()), Some(5)),
        (503, Some("30".to_owned()), Some(30)),
        (503, Some(date(90)), Some(90)),
        (503, Some(date(-90)), Some(1)),
        (503, None, None),
        (500, Some("30".to_owned()), Some(30)),
        (500, None, None),
        (403, Some("20".to_owned()), Some(20)),
        (413, Some("20".to_owned()), Some(20)),
    ];
    for (code, header, seconds) in cases {
        let mut headers = HeaderMap::new();
        headers.insert("date", date(0).parse().unwrap());
        if let Some(header) = &header {
            headers.insert("retry-after", header.parse().unwrap());
        }
        let (_server, bench) = http((StatusCode::from_u16(code).unwrap(), headers), "").await;
        match (bench.fetch().await, seconds) {
            (Err(FetchError::Busy(wait, _)), Some(seconds)) => assert_eq!(wait.as_secs(), seconds, "{code} {header:?}"),
            (Err(FetchError::Upstream(_)), None) => {}
            other => panic!("{code} {header:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_not_json_is_refused() {
    let cases: [(&'static [u8], &str); 12] = [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"<!DOCTYPE html><p>hello", "is HTML"),
        (b"hello", "is not JSON"),
        (b"{\"a\": 1", "is not JSON"),
        (b"{\"a\": 1} {}", "is not JSON"),
        (b"{\"a\": 1}\0", "is not JSON"),
        (b"{\"a\": \"\0\"}", "is not JSON"),
        (b"{\"a\": NaN}", "is not JSON"),
        (b"{\"a\": \"\\ud800\"}", "is not JSON"),
        (b"{\"a\": \"\xfe\xff\"}", "is not UTF-8"),
        (b"null", "is null"),
    ];
    for (bytes, reason) in cases {
        let (_server, bench) = http(bytes, "").await;
        let refused = bench.refused().await;
        assert!(refused.contains(reason) && !refused.contains('\n'), "{refused}");
        assert!(refused.contains("(status 200)"), "{refused}");
    }
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let (_server, bench) = http(deep, "").await;
    assert!(bench.refused().await.len() < 500);
    for (pointer, text) in
        [("/data", "{}"), ("/data/x", "{\"data\": 1}"), ("/0", "[]"), ("/01", "[1,2]"), ("/-", "[1]")]
    {
        let (_server, bench) = http(text, &format!("select = \"{pointer}\"")).await;
        assert!(bench.refused().await.contains("has nothing at"), "{pointer} {text}");
    }
    let (_server, bench) = http("{\"data\": null}", "select = \"/data\"").await;
    assert!(bench.refused().await.contains("is null"));
}

#[tokio::test]
async fn messages_show_little_and_no_secret() {
    let server = Server::start(|seen| {
        let told = seen.headers["authorization"].to_str().unwrap().to_owned();
        (StatusCode::BAD_REQUEST, format!("you sent {told} to {} {}", seen.target, "é".repeat(5000))).into_response()
    })
    .await;
    let job = "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/t?key=hunter22&n={{ name }}\"";
    let bench = Bench::new(&server, job, "headers = { Authorization = \"Bearer sk-very-secret\" }");
    let reason = bench.refused().await;
    assert!(!reason.contains("secret") && !reason.contains("hunter22"), "{reason}");
    assert!(reason.contains("you sent ***") && reason.ends_with('…') && reason.chars().count() < 350, "{reason}");
    assert_eq!(client::shown("https://user:pass@host:1/p/a?k=v#f"), "https://host:1/p/a?…");
}

#[tokio::test]
async fn secrets_of_the_environment_show_in_no_message() {
    let server = Server::start(|seen| {
        let status = if seen.target.contains("busy") { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::BAD_REQUEST };
        (status, format!("no {} here, {}", seen.target, seen.body)).into_response()
    })
    .await;
    let base = format!("{}/hook/T0K3N-of-url", server.url);
    let env = |name: &str| match name {
        "BASE" => Some(base.clone()),
        "PATH_KEY" => Some("p/th key".to_owned()),
        "BODY" => Some("b\"dy value".to_owned()),
        _ => None,
    };
    let source = |rest: &str| {
        format!("key = \"thing:{{name}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"up\"\n{rest}\n")
    };
    let own =
        "path = \"/bot{{ env.PATH_KEY }}/{{ name }}\"\nbody = { b = \"{{ env.BODY }}\" }\n[entries]\nfeed = \"/\"";
    let own =
        own.replace("feed = \"/\"", "feed = { upstream = \"up\", path = \"/{{ env.PATH_KEY }}/feed\", select = \"\" }");
    let files = [
        ("upstreams.toml".to_owned(), "[up]\nurl = \"{{ env.BASE }}\"\n".to_owned()),
        ("thing.toml".to_owned(), source(&own)),
    ];
    let jobs = Jobs::parse(&files, Duration::from_secs(60), &env).unwrap_or_else(|faults| panic!("{:#?}", faults.0));
    assert!(!format!("{:?}", jobs.env_values).contains("key\""), "{:?}", jobs.env_values);
    let bench = Bench {
        sources: Sources::new(&jobs).unwrap(),
        jobs,
        name: "x".into(),
        inputs: Map::new(),
        known: None,
        deadline: Duration::from_secs(30),
    };
    let mut told = Vec::new();
    for name in ["x", "busy", "..", ""] {
        let bench = Bench { name: name.into(), ..bench.again() };
        told.push(bench.fetch().await.unwrap_err().to_string());
    }
    told.push(bench.sources.feed(&bench.jobs, bench.job()).await.unwrap_err().to_string());
    drop(server);
    told.push(bench.fetch().await.unwrap_err().to_string());
    for told in told {
        for secret in ["T0K3N", "th key", "th%20key", "dy value"] {
            assert!(!told.contains(secret), "{told}");
        }
    }
}

#[tokio::test]
async fn too_much_is_not_read() {
    let big = |announced: bool| {
        move |_: &Seen| {
            let chunk = Bytes::from(vec![b' '; 1 << 16]);
            let endless = stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone())).take(1 << 14);
            let mut response = Response::new(Body::from_stream(endless));
            if announced {
                response.headers_mut().insert("content-length", (1 << 30).into());
            }
            response
        }
    };
    for (announced, reason) in [(true, "announces more than `max_bytes`"), (false, "is longer than `max_bytes`")] {
        let server = Server::start(big(announced)).await;
        let refused = Bench::http(&server, "").refused().await;
        assert!(refused.contains(reason), "{refused}");
    }
    let bomb = gzip_bomb(100_000);
    assert!(bomb.len() < 200_000);
    let (_server, bench) = http(([("content-encoding", "gzip")], bomb), "").await;
    let refused = bench.refused().await;
    assert!(refused.contains("is longer than `max_bytes`"), "{refused}");
    let text = format!("\"{}\"", "x".repeat(1022));
    let server = answering(text).await;
    let job = "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/t/{{ name }}\"";
    Bench::new(&server, job, "max_bytes = \"1024B\"").value().await;
    Bench::new(&server, job, "max_bytes = \"1023B\"").refused().await;
}

#[tokio::test]
async fn compressed_answers_are_read_whole_or_not_at_all() {
    let server = Server::start(|seen| {
        let (coding, body) = match seen.target.as_str() {
            "/t/one" => ("gzip", gzip(b"{\"a\": [1, 2]}")),
            "/t/two" => ("x-GZIP, identity", [gzip(b"12"), gzip(b"34")].concat()),
            "/t/many" => ("GZip", b"[1, 2, \"three\"]".iter().flat_map(|byte| gzip(&[*byte])).collect()),
            "/t/junk" => ("gzip", [gzip(b"[1]"), b"some junk after it".to_vec()].concat()),
            "/t/json" => ("gzip", [gzip(b"1"), b" 2".to_vec()].concat()),
            "/t/plain" => ("gzip", b"{\"a\": 1}".to_vec()),
            "/t/empty" => ("gzip", Vec::new()),
            "/t/nothing" => ("gzip", gzip(b"")),
            "/t/cut" => ("gzip", gzip(b"1234")[..20].to_vec()),
            "/t/half" => ("gzip", [gzip(b"12"), gzip(b"34")[..9].to_vec()].concat()),
            _ => ("zstd, br", b"{}".to_vec()),
        };
        ([("content-encoding", coding)], body).into_response()
    })
    .await;
    let mut bench = Bench::http(&server, "");
    for (name, stored) in [("one", "{\"a\": [1, 2]}"), ("two", "1234"), ("many", "[1, 2, \"three\"]")] {
        bench.name = name.into();
        assert_eq!(bench.value().await.json, stored);
        assert_eq!(server.last().headers["accept-encoding"], "gzip");
    }
    for (name, reason) in [
        ("junk", "has something else after it"),
        ("plain", "is not the gzip that its Content-Encoding names"),
        ("empty", "is empty"),
        ("nothing", "is empty"),
        ("other", "has the content coding `zstd`, but only gzip is read"),
    ] {
        bench.name = name.into();
        let refused = bench.refused().await;
        assert!(refused.contains(reason), "{refused}");
    }
    for name in ["cut", "half", "json"] {
        bench.name = name.into();
        let failed = bench.upstream_failed().await;
        assert!(failed.contains("does not end with whole gzip data"), "{failed}");
    }
}

#[tokio::test]
async fn half_a_frame_is_never_stored() {
    let job = "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/t/{{ name }}\"";
    for cut in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n12"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n12",
    ] {
        Bench::new(&Server::raw(cut, true).await, job, "").upstream_failed().await;
    }
    // Without a frame only the document itself can tell where it ends, and a number cannot.
    let number = Server::raw(b"HTTP/1.1 200 OK\r\n\r\n12", true).await;
    assert!(Bench::new(&number, job, "").refused().await.contains("a bare number that may be cut off"));
    let list = Server::raw(b"HTTP/1.0 200 OK\r\n\r\n[12]", true).await;
    assert_eq!(Bench::new(&list, job, "").value().await.json, "[12]");
}

#[tokio::test]
async fn sick_upstreams_are_told_from_bad_answers() {
    let job = "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/t/{{ name }}\"";
    let quick = "timeout = \"300ms\"";
    let half = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"a\": 1}", true).await;
    assert!(Bench::new(&half, job, "").upstream_failed().await.contains("was cut off after 8 bytes"));
    let hanging = Server::raw(b"", false).await;
    assert!(Bench::new(&hanging, job, quick).upstream_failed().await.contains("no whole answer within 300ms"));
    let closing = Server::raw(b"", true).await;
    Bench::new(&closing, job, "").upstream_failed().await;
    let hanging = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"a\"", false).await;
    Bench::new(&hanging, job, quick).upstream_failed().await;
    let garbage = Server::raw(b"SSH-2.0-OpenSSH_9.9\r\n", true).await;
    Bench::new(&garbage, job, "").upstream_failed().await;

    let trickle = Server::start(|_| {
        let drops = stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, std::io::Error>(" "), ()))
        });
        Body::from_stream(drops.boxed()).into_response()
    })
    .await;
    Bench::new(&trickle, job, quick).upstream_failed().await;
    let mut bench = Bench::new(&trickle, job, "timeout = \"1h\"");
    bench.deadline = Duration::from_millis(200);
    bench.upstream_failed().await;

    for head in [format!("X: {}", "x".repeat(8 << 20)), "X: y\r\n".repeat(100_000)] {
        let head = format!("HTTP/1.1 200 OK\r\n{head}").into_bytes();
        let endless = Server::raw(head.leak(), false).await;
        let reason = Bench::new(&endless, job, "").upstream_failed().await;
        assert!(reason.contains("cannot be asked"), "{reason}");
    }
    // What comes after the announced end is not of this answer.
    let more = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\n[]", false).await;
    assert_eq!(Bench::new(&more, job, "").value().await.json, "{}");
    let two = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 7\r\n\r\n{\"a\":1}", true).await;
    Bench::new(&two, job, "").upstream_failed().await;

    let gone = { answering("{}").await.url };
    let nobody = Server { url: gone, seen: Arc::default(), _tasks: JoinSet::new() };
    let reason = Bench::new(&nobody, job, quick).upstream_failed().await;
    assert!(reason.contains("cannot be asked") || reason.contains("no whole answer"), "{reason}");
}

#[tokio::test]
async fn redirects_keep_secrets_at_home() {
    let other = answering("{\"other\": true}").await;
    let away = other.url.clone();
    let server = Server::start(move |seen| {
        let to = match seen.target.as_str() {
            "/t/near" | "/post" => "/final".to_owned(),
            "/t/far" => format!("{away}/far"),
            "/t/nowhere" => return StatusCode::FOUND.into_response(),
            "/t/login" => "ftp://example.com/".to_owned(),
            "/final" => return "{\"near\": true}".into_response(),
            more => format!("{more}/more"),
        };
        let status = if seen.target == "/post" { StatusCode::PERMANENT_REDIRECT } else { StatusCode::FOUND };
        (status, [("location", to)]).into_response()
    })
    .await;
    let job = "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/t/{{ name }}\"\nheaders = { X-Own = \"own\" }";
    let secret = "headers = { X-Api-Key = \"secret\" }";
    let mut bench = Bench::new(&server, job, secret);
    bench.name = "near".into();
    assert_eq!(bench.value().await.json, "{\"near\": true}");
    assert_eq!(server.last().headers["x-api-key"], "secret");
    for (name, reason) in [
        ("far", "redirects to another host"),
        ("nowhere", "redirects nowhere"),
        ("login", "redirects to another host"),
        ("loop", "redirects more than 5 times"),
    ] {
        bench.name = name.into();
        let refused = bench.refused().await;
        assert!(refused.contains(reason), "{refused}");
    }
    assert_eq!(other.calls(), 0);
    let mut bench = Bench::new(&server, job, &format!("{secret}\nredirects = \"any\""));
    bench.name = "far".into();
    assert_eq!(bench.value().await.json, "{\"other\": true}");
    let seen = other.last();
    assert!(!seen.headers.contains_key("x-api-key") && !seen.headers.contains_key("x-own"), "{seen:?}");

    // The same host under a name, which is not public either.
    let named = other.url.replace("127.0.0.1", "localhost");
    let elsewhere = Server::start(move |seen| {
        let to = match seen.target.as_str() {
            "/t/name" => format!("{named}/far"),
            "/t/metadata" => "http://169.254.169.254/latest/meta-data".to_owned(),
            "/t/mapped" => "http://[::ffff:127.0.0.1]/".to_owned(),
            "/t/number" => "http://2130706433/".to_owned(),
            "/t/home" => "/final".to_owned(),
            _ => return "{\"home\": true}".into_response(),
        };
        (StatusCode::FOUND, [("location", to)]).into_response()
    })
    .await;
    let calls = other.calls();
    let mut bench = Bench::new(&elsewhere, job, &format!("{secret}\nredirects = \"public\""));
    for name in ["metadata", "mapped", "number"] {
        bench.name = name.into();
        let refused = bench.refused().await;
        assert!(refused.contains("redirects to a private address"), "{refused}");
    }
    bench.name = "name".into();
    let refused = bench.upstream_failed().await;
    assert!(refused.contains("has no public address"), "{refused}");
    assert_eq!(other.calls(), calls);
    bench.name = "home".into();
    assert_eq!(bench.value().await.json, "{\"home\": true}");

    let post = "[source]\nkind = \"http\"\nupstream = \"up\"\npath = \"/post\"\nbody = { a = \"{{ name }}\" }";
    Bench::new(&server, post, "").value().await;
    assert_eq!((server.last().method.as_str(), server.last().body.as_str()), ("POST", "{\"a\":\"x\"}"));
}

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
            let names = sources.feed(&jobs, jobs.jobs.values().next().unwrap()).await;
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
    let unchanged =
        async |bench: &Bench| bench.with(async |ask| bench.sources.unchanged_without_asking(&bench.jobs, &ask)).await;
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
        (completion("half a", "length"), "was cut short", told(15)),
        (completion("bad", "content_filter"), "content_filter", told(15)),
        (completion(" ", "stop"), "without text", told(15)),
        (r#"{"choices": []}"#.to_owned(), "without choices", told(prompt)),
        (r#"{"error": {"message": "overloaded"}}"#.to_owned(), "overloaded", told(prompt)),
        (r#"{"choices": 3, "usage": {"total_tokens": "9"}}"#.to_owned(), "without choices", told(9)),
        (r#"{"choices": [{"message": {"content": null, "refusal": "no"}, "finish_reason": "stop"}], "usage": {"total_tokens": 4}}"#.to_owned(), "refusal", told(4)),
        ("[]".to_owned(), "without choices", told(prompt)),
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
        assert!(refused.contains(&format!("was cut short at {named}")), "{refused}");
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

/// A gzip file with the data as it is.
fn gzip(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    file.extend(length.to_le_bytes());
    file.extend((!length).to_le_bytes());
    file.extend(data);
    let crc = data.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    });
    file.extend((!crc).to_le_bytes());
    file.extend(u32::from(length).to_le_bytes());
    file
}

/// A gzip file of `258 * repeats` spaces in a few bytes: one space, and again and again the last 258 from one before
/// (RFC 1951, section 3.2.6, fixed codes).
fn gzip_bomb(repeats: usize) -> Vec<u8> {
    let mut bits = vec![true, true, false];
    let code = |value: u32, length: u32| (0..length).rev().map(move |bit| value >> bit & 1 == 1);
    bits.extend(code(0x30 + 0x20, 8));
    for _ in 0..repeats {
        bits.extend(code(0b1100_0101, 8).chain(code(0, 5)));
    }
    bits.extend(code(0, 7));
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    file.extend(bits.chunks(8).map(|byte| byte.iter().enumerate().map(|(i, bit)| u8::from(*bit) << i).sum::<u8>()));
    file.extend([0; 8]);
    file
}
