//! Secrets in messages and after redirects.

use super::*;

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
    told.push(bench.sources.feed(bench.job()).await.unwrap_err().to_string());
    drop(server);
    told.push(bench.fetch().await.unwrap_err().to_string());
    for told in told {
        for secret in ["T0K3N", "th key", "th%20key", "dy value"] {
            assert!(!told.contains(secret), "{told}");
        }
    }
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
        ("nowhere", "redirects without a usable Location"),
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
