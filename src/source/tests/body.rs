//! Bodies: complete, too long, compressed, cut off.

use super::*;

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
    for (announced, reason) in
        [(true, "has a Content-Length longer than `max_bytes`"), (false, "is longer than `max_bytes`")]
    {
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
        ("junk", "has other data after it"),
        ("plain", "is not valid gzip"),
        ("empty", "is empty"),
        ("nothing", "is empty"),
        ("other", "has the content coding `zstd`, but only gzip"),
    ] {
        bench.name = name.into();
        let refused = bench.refused().await;
        assert!(refused.contains(reason), "{refused}");
    }
    for name in ["cut", "half", "json"] {
        bench.name = name.into();
        let failed = bench.upstream_failed().await;
        assert!(failed.contains("has incomplete gzip data"), "{failed}");
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
    assert!(Bench::new(&hanging, job, quick).upstream_failed().await.contains("no complete answer within 300ms"));
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
        assert!(reason.contains("cannot be reached"), "{reason}");
    }
    // What comes after the announced end is not of this answer.
    let more = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\n[]", false).await;
    assert_eq!(Bench::new(&more, job, "").value().await.json, "{}");
    let two = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 7\r\n\r\n{\"a\":1}", true).await;
    Bench::new(&two, job, "").upstream_failed().await;

    let gone = { answering("{}").await.url };
    let nobody = Server { url: gone, seen: Arc::default(), _tasks: JoinSet::new() };
    let reason = Bench::new(&nobody, job, quick).upstream_failed().await;
    assert!(reason.contains("cannot be reached") || reason.contains("no complete answer"), "{reason}");
}
