//! The meaning of an answer's status.

use super::*;

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
    assert!(bench.refused().await.contains("(status 403) refuses Samovar"));
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
