mod ai;
mod body;
mod feed;
mod http;
mod secrets;
mod status;

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

/// A request as a server received it.
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

    /// Starts a server that writes these bytes to each connection, and then closes it if `close`.
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
        self.with(async |ask| self.sources.fetch(&ask).await).await
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
            Err(FetchError::Answer(reason) | FetchError::Cut(reason)) => reason,
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
        let fed = sources.feed(job).await.unwrap().entries;
        entries.extend(fed.iter().filter_map(|key| job.key.read(key)));
        assert!(job.entries.feed.is_none() || entries.len() > 60, "{}", job.name);
        for params in entries {
            let inputs = job.inputs.keys().map(|name| (name.clone(), json!({ "title": "x" }))).collect();
            let key = job.key.write(&params).unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            let ask = Ask { job, source: 0, key: &key, params: &params, inputs: &inputs, known: None, deadline };
            let Answer::Value(fetched) = sources.fetch(&ask).await.unwrap() else { panic!("{key}") };
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
