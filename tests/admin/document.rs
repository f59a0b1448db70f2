//! The OpenAPI document: every route is in it and answers as it says.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{OPEN, OWNERS, Server, both, send};
use crate::support::{Art, Reply, eventually};

/// The answers that [`every_route_is_in_the_document_and_answers_as_it_says`] looks at.
fn schema_of<'a>(document: &'a Value, path: &str, method: &str, status: &str) -> &'a Value {
    let answers = &document["paths"][path][method]["responses"];
    let answer = answers.get(status).unwrap_or(&answers["default"]);
    let content = answer["content"].as_object().unwrap_or_else(|| panic!("{method} {path} {status}"));
    &content.values().next().unwrap()["schema"]
}

#[tokio::test]
async fn every_route_is_in_the_document_and_answers_as_it_says() {
    let (redis, upstream) = both().await;
    upstream.on("/art/bad", Reply::status(500));
    let jobs = Art::of(&upstream).list(["a", "bad"]).warm("attempts = 1\nevery = \"1h\"").folder();
    let server = Server::start(&redis, &jobs).await.ready().await;
    eventually("there is a dead letter", async || server.get("/dead").await.ok()["total"] == 1).await;
    let document = server.get("/openapi.json").await.ok();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    // Path as documented, method, request, body.
    let routes = OPEN
        .iter()
        .filter(|path| **path != "/metrics" && **path != "/jobs/art")
        .map(|path| (*path, "get", *path, None))
        .chain([
            ("/jobs/{job}", "get", "/jobs/art", None),
            ("/jobs/{job}", "get", "/jobs/nobody", None),
            ("/dead", "get", "/dead", None),
            ("/entries", "get", "/entries?key=art:a", None),
            ("/entries", "get", "/entries?key=art:none", None),
            ("/entries", "get", "/entries", None),
            ("/invalidate", "post", "/invalidate", Some(json!({"keys": ["art:a"]}))),
            ("/invalidate", "post", "/invalidate", Some(json!({"tags": ["old"], "action": "evict"}))),
            ("/invalidate", "post", "/invalidate", Some(json!({}))),
            ("/invalidate", "post", "/invalidate?dry_run=true", Some(json!({"jobs": ["art"]}))),
            ("/warm", "post", "/warm", Some(json!({"keys": ["art:a"]}))),
            ("/warm", "post", "/warm?wait=true", Some(json!({"keys": ["art:b"]}))),
            ("/jobs/{job}/pause", "post", "/jobs/art/pause", None),
            ("/jobs/{job}/resume", "post", "/jobs/art/resume", None),
            ("/jobs/{job}/gone/hold", "post", "/jobs/art/gone/hold", None),
            ("/jobs/{job}/gone/accept", "post", "/jobs/art/gone/accept", None),
            ("/jobs/{job}/gone/hold", "post", "/jobs/art/gone/hold", None),
            ("/jobs/{job}", "get", "/jobs/art", None),
            ("/dead/retry", "post", "/dead/retry", None),
            ("/reload", "post", "/reload", None),
            ("/redis/clear", "delete", "/redis/clear?pattern=art:b", None),
            ("/redis/clear/{pattern}", "delete", "/redis/clear/art:a", None),
        ]);
    let mut tried: BTreeSet<(String, String)> = BTreeSet::from([("/metrics".into(), "get".into())]);
    for (path, method, target, body) in routes {
        tried.insert((path.to_owned(), method.to_owned()));
        let request = server.request(method.to_uppercase().parse().unwrap(), target);
        let answer = send(if let Some(body) = &body { request.json(body) } else { request }).await;
        let mut schema = schema_of(&document, path, method, answer.status.as_str()).clone();
        if let Some(fields) = schema.as_object_mut() {
            fields.insert("components".to_owned(), document["components"].clone());
        }
        let validator = jsonschema::validator_for(&schema).unwrap();
        let faults: Vec<String> =
            validator.iter_errors(&answer.json()).map(|e| format!("{e} at {}", e.instance_path())).collect();
        assert_eq!(faults, Vec::<String>::new(), "{method} {target}: {}", answer.text);
    }
    let documented: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())))
        .collect();
    assert_eq!(documented, tried);
    for (method, path) in OWNERS {
        let path = path.split('?').next().unwrap().replace("art:*", "{pattern}").replace("/art/", "/{job}/");
        let operation = &document["paths"][&path][method.to_lowercase()];
        assert!(operation["security"].to_string().contains("token"), "{method} {path}");
    }
}
