//! The console in Chromium, by way of its driver. Screenshots of all screens are left under `target/screenshots`.
//!
//! `make test` installs Chromium where it can; where it is missing, this says so and tries nothing. With
//! SAMOVAR_TEST_ALL=on, as in CI, that is a failure. A test has the browser for much, since it takes long to start.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::prelude::*;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{Console, OWNER, VIEWER, both, with_roles};
use crate::support::{Art, Parts, Reply, TestRedis, Upstream, eventually, version};

/// All screens, by the name of their screenshots.
const SCREENS: [(&str, &str); 13] = [
    ("overview", "/"),
    ("jobs", "/console/jobs"),
    ("job", "/console/jobs/art"),
    ("entry", "/console/entry?key=art:a"),
    ("agenda", "/console/agenda"),
    ("upstreams", "/console/upstreams"),
    ("dead", "/console/dead"),
    ("fleet", "/console/fleet"),
    ("audit", "/console/audit"),
    ("ask", "/console/ask/pause?job=art"),
    ("evict", "/console/ask/evict?job=art"),
    ("missing", "/console/jobs/nobody"),
    ("login", "/console/login"),
];
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The impacts by which axe-core names a barrier that must not be.
const SERIOUS: [&str; 2] = ["serious", "critical"];

/// Tells that something is not tried. Where all must be tried, as in CI, that is a failure, unless the script that
/// installs it noted that it cannot be had on this machine.
#[expect(clippy::disallowed_methods, reason = "settings of a test are none of Samovar's")]
fn not_tried(what: &str, why: &str) {
    let must = std::env::var("SAMOVAR_TEST_ALL").is_ok_and(|all| all == "on");
    let cannot_be_had = Path::new(ROOT).join("target/cannot-be-had").join(what).exists();
    assert!(!must || cannot_be_had, "SAMOVAR_TEST_ALL is on, and {why}; run scripts/install-chromium.sh");
    eprintln!("NOT TRIED: {why}; `make test` installs it where it can");
}

async fn is_there(program: &str) -> bool {
    let asked = Command::new(program).arg("--version").output().await;
    asked.is_ok_and(|asked| asked.status.success())
}

/// A browser with a profile of its own. It ends with the test.
pub(super) struct Browser {
    pub(super) driver: WebDriver,
    _driver: Child,
    _profile: TempDir,
}

impl Browser {
    /// Starts Chromium; `None` where it is not installed.
    pub(super) async fn start() -> Option<Self> {
        if !is_there("chromium").await || !is_there("chromedriver").await {
            not_tried("chromium", "there is no chromium with a chromedriver on the PATH");
            return None;
        }
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next_line().await.unwrap().expect("the driver tells its port");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        let profile = TempDir::new().unwrap();
        let mut wanted = DesiredCapabilities::chrome();
        let folder = format!("--user-data-dir={}", profile.path().display());
        for argument in [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
            "--disable-sync",
            "--no-first-run",
            "--disable-quic",
            &folder,
        ] {
            wanted.add_arg(argument).unwrap();
        }
        let driver = WebDriver::new(format!("http://127.0.0.1:{port}"), wanted).await.unwrap();
        Some(Self { driver, _driver: process, _profile: profile })
    }

    pub(super) async fn run(&self, code: &str, arguments: Vec<Value>) -> Value {
        self.driver.execute(code, arguments).await.unwrap().json().clone()
    }

    pub(super) async fn log_in(&self, url: &str, token: &str) {
        self.driver.delete_all_cookies().await.unwrap();
        self.driver.goto(format!("{url}/console/jobs")).await.unwrap();
        self.driver.find(By::Id("token")).await.unwrap().send_keys(token).await.unwrap();
        self.driver.find(By::Css("main button")).await.unwrap().click().await.unwrap();
        eventually("the login leads to the page that was asked for", async || self.title().await.starts_with("Jobs"))
            .await;
    }

    pub(super) async fn title(&self) -> String {
        self.driver.title().await.unwrap()
    }

    pub(super) async fn text(&self) -> String {
        self.run("return document.body.innerText", Vec::new()).await.as_str().unwrap_or_default().to_owned()
    }

    /// Has pages shown as on a screen of this size, light or dark.
    pub(super) async fn look(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.driver.cdp().send_raw("Emulation.setDeviceMetricsOverride", size).await.unwrap();
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.driver.cdp().send_raw("Emulation.setEmulatedMedia", scheme).await.unwrap();
    }

    async fn shoot(&self, name: &str) {
        let folder = Path::new(ROOT).join("target/screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        self.driver.screenshot(&folder.join(format!("{name}.png"))).await.unwrap();
    }

    /// Returns what axe-core finds to be a barrier on this page; nothing where it is not installed.
    async fn barriers(&self) -> Vec<String> {
        let axe = Path::new(ROOT).join("target/axe/node_modules/axe-core/axe.min.js");
        let Ok(axe) = std::fs::read_to_string(axe) else {
            not_tried("axe-core", "there is no axe-core in target/axe");
            return Vec::new();
        };
        self.run(&axe, Vec::new()).await;
        let code = "const done = arguments[0]; axe.run().then((found) => done(found.violations.map((one) => \
                    [one.impact, one.id + ': ' + one.nodes.map((node) => node.html).join(' ')])))";
        let found = self.driver.execute_async(code, Vec::new()).await.unwrap();
        let found: Vec<(String, String)> = serde_json::from_value(found.json().clone()).unwrap();
        found.into_iter().filter(|(impact, _)| SERIOUS.contains(&impact.as_str())).map(|(_, what)| what).collect()
    }
}

#[tokio::test]
async fn the_console_works_in_a_browser() {
    let Some(browser) = Browser::start().await else { return };
    let (redis, upstream) = both().await;
    upstream.publish("/art/a", json!({"by": "</pre><script>document.title = 'hacked'</script>"}));
    upstream.on("/art/bad", Reply::status(500));
    let names = (0..30).map(|n| n.to_string()).chain(["a".to_owned(), "bad".to_owned()]);
    for n in 0..30 {
        upstream.edit(&format!("/art/{n}"));
    }
    let archive = format!("[archive]\nurl = \"{}\"\nrate = \"5/minute\"", upstream.url());
    let story = "key = \"story:{name}\"\nttl = \"1h\"\ndescription = \"Stories of the archive\"\n[source]\n\
                 kind = \"http\"\nupstream = \"archive\"\npath = \"/story/{{ name }}\"\n";
    let art = Art::of(&upstream).ttl("20m").list(names).limits(&archive).warm("attempts = 1\nevery = \"15m\"");
    let jobs = art.folder().job("story", story);
    overload(&redis).await;
    let console = Console::of(with_roles(&redis, &jobs).env("SAMOVAR_TITLE", "tea room")).await;
    browser.look(1280, 900, "light").await;
    for (token, role) in [(VIEWER, "may look"), (OWNER, "may act")] {
        browser.log_in(&console.url, token).await;
        assert!(browser.text().await.contains(role), "{}", browser.text().await);
    }
    eventually("all is warm but what fails", async || {
        let dead = redis.ask::<usize>(&["ZCARD", "samovar:dead:{art}"]).await;
        dead == 1 && redis.keys("art:*").await.len() == 31
    })
    .await;
    pauses_and_resumes(&browser, &console).await;
    follows_a_publish(&browser, &console, &redis, &upstream).await;
    let mut barriers = Vec::new();
    for (look, width, height, scheme) in
        [("light", 1280, 900, "light"), ("dark", 1280, 900, "dark"), ("phone", 390, 844, "light")]
    {
        browser.look(width, height, scheme).await;
        for (name, path) in SCREENS {
            browser.driver.goto(format!("{}{path}", console.url)).await.unwrap();
            assert!(!browser.title().await.contains("hacked"), "{path}");
            let overflow = browser.run("return document.documentElement.scrollWidth - innerWidth", Vec::new()).await;
            assert!(overflow.as_i64().unwrap() <= 0, "{look} {path} is {overflow} pixels too wide");
            if look != "phone" {
                barriers.extend(browser.barriers().await.into_iter().map(|what| format!("{look} {path} {what}")));
            }
            browser.shoot(&format!("{name}-{look}")).await;
        }
    }
    assert_eq!(barriers, Vec::<String>::new());
    browser.driver.quit().await.unwrap();
}

async fn pauses_and_resumes(browser: &Browser, console: &Console) {
    browser.driver.goto(format!("{}/console/ask/pause?job=art", console.url)).await.unwrap();
    browser.driver.find(By::Id("note")).await.unwrap().send_keys("moving house").await.unwrap();
    browser.driver.find(By::Css("main button")).await.unwrap().click().await.unwrap();
    eventually("it is paused", async || browser.text().await.contains("moving house")).await;
    browser.driver.goto(format!("{}/console/ask/resume?job=art", console.url)).await.unwrap();
    browser.driver.find(By::Css("main button")).await.unwrap().click().await.unwrap();
    eventually("it is resumed", async || browser.title().await.starts_with("Job art")).await;
    eventually("the note is gone", async || !browser.text().await.contains("moving house")).await;
}

/// The page changes by itself.
async fn follows_a_publish(browser: &Browser, console: &Console, redis: &TestRedis, upstream: &Upstream) {
    browser.driver.goto(format!("{}/console/entry?key=art:7", console.url)).await.unwrap();
    let mark = "window.stays = true; return true";
    browser.run(mark, Vec::new()).await;
    let edited = upstream.edit("/art/7");
    Parts::of(redis).await.publish(r#"{"keys": ["art:7"]}"#).await;
    version(redis, "7", edited).await;
    eventually("the page shows the new version", async || {
        browser.text().await.contains(&format!("\"version\": {edited}"))
    })
    .await;
    assert_eq!(browser.run("return window.stays", Vec::new()).await, true, "it was not loaded anew");
}

/// Puts more entries of a paused job on its agenda than its upstream allows in their minute.
async fn overload(redis: &TestRedis) {
    let (seconds, _): (i64, i64) = redis.ask(&["TIME"]).await;
    redis.ask::<String>(&["SET", "samovar:paused:{story}", &format!("{seconds}000")]).await;
    for n in 0..40 {
        let minute = [3, 10, 10, 10, 10, 25, 26, 27, 45, 45][n % 10];
        let due = (seconds + 60 * minute) * 1_000;
        redis.ask::<u64>(&["ZADD", "samovar:agenda:{story}", &due.to_string(), &format!("story:{n}")]).await;
    }
}
