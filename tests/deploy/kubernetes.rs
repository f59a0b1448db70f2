//! The Kubernetes manifests: they fit one another, the image, the job files and the worker.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{checked, files, only, text, time, yaml};
use crate::support::{Art, TestRedis, Upstream, eventually, readable_key as readable, samovar, talkative};

const FOLDER: &str = "deploy/kubernetes";

fn manifest(name: &str) -> Value {
    yaml(&format!("{FOLDER}/{name}.yaml"))
}

fn pod() -> Value {
    manifest("deployment")["spec"]["template"]["spec"].clone()
}

fn container() -> Value {
    let pod = pod();
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    containers[0].clone()
}

/// Returns the value of a variable of the container.
fn env(name: &str) -> String {
    let container = container();
    let all = container["env"].as_array().unwrap();
    let one = all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    one["value"].as_str().unwrap().to_owned()
}

#[test]
fn the_manifests_follow_the_schema_of_kubernetes() {
    let manifests: Vec<String> =
        files(FOLDER, &["yaml"]).into_iter().filter(|file| !file.ends_with("/kustomization.yaml")).collect();
    assert!(manifests.len() >= 4, "{manifests:?}");
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.yaml");
    let deployment = text(&format!("{FOLDER}/deployment.yaml"));
    std::fs::write(&broken, deployment.replace("readinessProbe:", "readyProbe:")).unwrap();
    let right: Vec<&str> = ["kubernetes"].into_iter().chain(manifests.iter().map(String::as_str)).collect();
    let Some((is_right, said)) = checked(&right, "") else { return };
    assert!(is_right, "{said}");
    let (is_right, said) = checked(&["kubernetes", broken.to_str().unwrap()], "").unwrap();
    assert!(!is_right && said.contains("readyProbe"), "{said}");
}

#[test]
fn the_manifests_fit_one_another_and_the_image() {
    let (deployment, service, budget) = (manifest("deployment"), manifest("service"), manifest("poddisruptionbudget"));
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for selector in [&deployment["spec"]["selector"]["matchLabels"], &budget["spec"]["selector"]["matchLabels"]] {
        assert_eq!(selector, labels);
    }
    assert_eq!(&service["spec"]["selector"], labels);
    assert_eq!(&pod()["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"], labels);
    let (container, kustomization) = (container(), manifest("kustomization"));
    let port = &container["ports"][0];
    assert_eq!(env("SAMOVAR_LISTEN"), format!("0.0.0.0:{}", port["containerPort"]));
    let served = &service["spec"]["ports"][0];
    assert_eq!((&served["targetPort"], &served["port"]), (&port["name"], &port["containerPort"]));
    let annotations = &service["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"], port["containerPort"].to_string());
    assert_eq!(
        (&annotations["prometheus.io/path"], &annotations["prometheus.io/scrape"]),
        (&json!("/metrics"), &json!("true"))
    );
    assert_eq!(
        (&service["spec"]["clusterIP"], &service["spec"]["publishNotReadyAddresses"]),
        (&json!("None"), &json!(true))
    );
    // It is no object of Kubernetes, so there is no schema for it.
    only(&kustomization, &["apiVersion", "kind", "resources", "configMapGenerator", "images"]);
    only(&kustomization["configMapGenerator"][0], &["name", "files"]);
    let image = &kustomization["images"][0];
    only(image, &["name", "newName", "newTag"]);
    assert_eq!((&image["name"], &image["newTag"]), (&container["image"], &json!(env!("CARGO_PKG_VERSION"))));
    for resource in kustomization["resources"].as_array().unwrap() {
        manifest(resource.as_str().unwrap().strip_suffix(".yaml").unwrap());
    }
    // One worker goes at a time, and a replacement comes first.
    let update = &deployment["spec"]["strategy"]["rollingUpdate"];
    assert_eq!((&update["maxSurge"], &update["maxUnavailable"]), (&json!(1), &json!(0)));
    assert!(deployment["spec"]["replicas"].as_u64() > budget["spec"]["maxUnavailable"].as_u64());
}

#[test]
fn pods_are_confined_and_may_finish_their_work() {
    let (pod, container) = (pod(), container());
    let user = text("Dockerfile").lines().find_map(|line| line.strip_prefix("USER ").map(str::to_owned)).unwrap();
    assert_eq!(pod["securityContext"]["runAsUser"].to_string(), user);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let confined = &container["securityContext"];
    assert_eq!(
        (&confined["readOnlyRootFilesystem"], &confined["allowPrivilegeEscalation"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(confined["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!((&pod["enableServiceLinks"], &pod["automountServiceAccountToken"]), (&json!(false), &json!(false)));
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    assert!(grace >= time(&env("SAMOVAR_DRAIN")) + Duration::from_secs(5), "{grace:?}");
    for resource in [&container["resources"]["requests"]["memory"], &container["resources"]["limits"]["memory"]] {
        assert!(resource.as_str().is_some_and(|amount| amount.ends_with("Mi")), "{resource}");
    }
}

/// Kubernetes sends the pod's address as `Host`.
#[tokio::test]
async fn probes_ask_what_they_are_for() {
    let (mut redis, upstream) = tokio::join!(TestRedis::start(), Upstream::start());
    let jobs = Art::of(&upstream).folder();
    let listen = env("SAMOVAR_LISTEN").replace(":7070", ":0");
    let mut worker = talkative(&redis, &jobs).env("SAMOVAR_LISTEN", &listen).spawn();
    let port = worker.http().await.rsplit(':').next().unwrap().to_owned();
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    let container = container();
    let ask = async |probe: &str| {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap_or_else(|| panic!("{probe}"));
        let request = client.get(format!("http://127.0.0.1:{port}{path}")).header("Host", format!("10.1.2.3:{port}"));
        request.send().await.unwrap().status()
    };
    eventually("the pod is ready", async || ask("readinessProbe").await == StatusCode::OK).await;
    redis.stop().await;
    eventually("the pod is not ready", async || ask("readinessProbe").await == StatusCode::SERVICE_UNAVAILABLE).await;
    for probe in ["livenessProbe", "startupProbe"] {
        assert_eq!(ask(probe).await, StatusCode::OK, "{probe}");
    }
    assert!(container["readinessProbe"]["timeoutSeconds"].as_u64() > Some(1), "the worker waits 1 s for Redis");
}

#[tokio::test]
async fn the_job_files_are_mounted_whole_and_have_no_fault() {
    let (container, kustomization) = (container(), manifest("kustomization"));
    let (mount, volume) = (&container["volumeMounts"][0], &pod()["volumes"][0]);
    assert_eq!((mount["mountPath"].as_str().unwrap(), &mount["name"]), (env("SAMOVAR_JOBS").as_str(), &volume["name"]));
    assert_eq!((&mount["readOnly"], &mount["subPath"]), (&json!(true), &Value::Null), "a subPath is never updated");
    let generated = &kustomization["configMapGenerator"][0];
    assert_eq!(generated["name"], volume["configMap"]["name"]);
    let listed: BTreeSet<String> = generated["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| format!("{FOLDER}/{}", file.as_str().unwrap()))
        .collect();
    assert_eq!(listed, files(&format!("{FOLDER}/jobs"), &[]).into_iter().collect());
    let secret = manifest("secret.example");
    assert_eq!(container["envFrom"][0]["secretRef"]["name"], secret["metadata"]["name"]);
    let mut check = samovar(["check", super::root(&format!("{FOLDER}/jobs")).to_str().unwrap()]);
    for (name, value) in secret["stringData"].as_object().unwrap() {
        check = check.env(name, value.as_str().unwrap());
    }
    let done = check.run().await;
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// Puts files into a folder as Kubernetes mounts a ConfigMap: each name is a link through `..data`, which is replaced
/// at once.
fn mount(folder: &Path, version: &str, files: &[(&str, String)]) {
    let real = folder.join(format!("..{version}"));
    std::fs::create_dir(&real).unwrap();
    for (name, text) in files {
        std::fs::write(real.join(name), text).unwrap();
    }
    let data = folder.join("..data");
    let before = std::fs::read_link(&data).ok();
    symlink(format!("..{version}"), folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), &data).unwrap();
    for (name, _) in files.iter().filter(|(name, _)| std::fs::symlink_metadata(folder.join(name)).is_err()) {
        symlink(format!("..data/{name}"), folder.join(name)).unwrap();
    }
    let links = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for gone in links.filter(|path| path.is_symlink() && !path.exists()) {
        std::fs::remove_file(gone).unwrap();
    }
    before.into_iter().for_each(|old| std::fs::remove_dir_all(folder.join(old)).unwrap());
}

#[tokio::test]
async fn a_mounted_config_map_is_read_once_and_reloads() {
    let (redis, upstream) = tokio::join!(TestRedis::start(), Upstream::start());
    upstream.otherwise(|_, _| crate::support::Reply::json(json!({"a": 1})));
    let art = Art::of(&upstream);
    let (upstreams, other) = (format!("[museum]\nurl = \"{}\"\n", upstream.url()), art.clone().list(["y"]).toml());
    let jobs = crate::support::JobsFolder::new();
    let upstreams = || ("upstreams.toml", upstreams.clone());
    mount(jobs.path(), "1", &[upstreams(), ("art.toml", art.clone().list(["a"]).toml())]);
    let mut worker = talkative(&redis, &jobs).spawn();
    readable(&redis, "art:a").await;
    let other = other.replace("art:", "other:");
    mount(jobs.path(), "2", &[upstreams(), ("art.toml", art.list(["b"]).toml()), ("other.toml", other.clone())]);
    worker.hangup();
    readable(&redis, "art:b").await;
    readable(&redis, "other:y").await;
    // A job leaves, and the folder holds the link of another file.
    mount(jobs.path(), "3", &[upstreams(), ("other.toml", other)]);
    worker.hangup();
    worker.wait_for_log(&["read again without faults", "jobs=1"]).await;
}
