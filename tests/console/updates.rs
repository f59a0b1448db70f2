//! A page that is open in a browser while the fleet, its worker and Redis change.

use std::net::TcpListener;
use std::time::Duration;

use thirtyfour::prelude::*;

use super::browser::Browser;
use super::{Console, OWNER, both, with_roles};
use crate::support::{Art, Reply, TestRedis, eventually, eventually_within, readable_key};

/// The time in which a page is connected again; it tries every half a minute at last.
const SOON: Duration = Duration::from_secs(90);

/// A console at an address that it has again after a restart, in a browser.
struct Stage {
    browser: Browser,
    console: Console,
    /// A session for changes that are made elsewhere.
    owner: String,
}

impl Stage {
    async fn goto(&self, path: &str) {
        self.browser.driver.goto(format!("{}{path}", self.console.url)).await.unwrap();
        self.browser.run("window.stays = true; return true", Vec::new()).await;
    }

    async fn shows(&self, text: &str) {
        eventually_within(SOON, &format!("the page shows {text:?}"), async || {
            let shown = self.browser.text().await;
            if shown.contains(text) { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    async fn is(&self, what: &str) -> bool {
        self.browser.run(&format!("return Boolean({what})"), Vec::new()).await == true
    }

    /// Checks that the page was not loaded anew.
    async fn stays(&self) {
        assert!(self.is("window.stays").await, "the page was loaded anew");
    }

    async fn pause(&self, note: &str) {
        self.console.act(&self.owner, "pause", &[("job", "art"), ("note", note)]).await;
        self.shows(note).await;
    }

    async fn click(&self, css: &str) {
        self.browser.driver.find(By::Css(css)).await.unwrap().click().await.unwrap();
    }
}

#[tokio::test]
async fn an_open_page_follows_what_happens() {
    let Some(browser) = Browser::start().await else { return };
    let (mut redis, upstream) = both().await;
    upstream.answer("/art/bad", |_, count| if count == 1 { Reply::status(500) } else { Reply::json("well".into()) });
    let jobs = Art::of(&upstream).list(["1", "2", "3", "bad"]).warm("attempts = 1\nevery = \"1h\"").folder();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let console = Console::at(&address, with_roles(&redis, &jobs)).await;
    let owner = console.log_in(OWNER).await;
    browser.look(1280, 900, "light").await;
    browser.log_in(&console.url, OWNER).await;
    let mut stage = Stage { browser, console, owner };
    readable_key(&redis, "art:1").await;

    tries_a_group_again(&stage).await;
    readable_key(&redis, "art:bad").await;
    keeps_its_place(&stage).await;

    stage.goto("/console/jobs").await;
    stage.shows("live").await;
    redis.stop().await;
    stage.shows("Redis does not answer").await;
    assert!(stage.is("document.querySelector('main table')").await, "the last state is still shown");
    redis.start_again().await;
    stage.shows("live").await;
    stage.stays().await;

    fails_once(&stage, &mut redis).await;
    stage.goto("/console/jobs/art").await;
    stage.shows("live").await;
    stage.console.worker.term();
    stage.console.worker.wait().await;
    stage.shows("not connected").await;
    stage.console = Console::at(&address, with_roles(&redis, &jobs)).await;
    stage.shows("live").await;
    stage.pause("after the restart").await;
    stage.stays().await;

    // The session ends.
    stage.browser.driver.delete_all_cookies().await.unwrap();
    eventually_within(SOON, "the page leads to the login", async || stage.browser.title().await.starts_with("Log in"))
        .await;
    stage.browser.driver.quit().await.unwrap();
}

/// Tries a group of dead letters again, by its buttons.
async fn tries_a_group_again(stage: &Stage) {
    stage.goto("/console/dead").await;
    stage.shows("art:bad").await;
    stage.click("main section.group .actions a").await;
    stage.shows("1 entry is tried again").await;
    stage.click("main button").await;
    stage.shows("No entry is given up").await;
}

/// An update takes neither the focus nor the selection, and repeats no announcement.
async fn keeps_its_place(stage: &Stage) {
    stage.goto("/console/jobs/art").await;
    stage.shows("live").await;
    let begin = "const link = document.querySelector('main td a.key'); link.focus(); window.link = link; \
                 getSelection().selectAllChildren(document.getElementById('rule')); return link.href";
    let link = stage.browser.run(begin, Vec::new()).await;
    stage.pause("while somebody reads").await;
    assert_eq!(stage.browser.run("return document.activeElement.href", Vec::new()).await, link);
    assert!(stage.is("window.link.isConnected && getSelection().toString() === 'As its file says'").await);
    // What had the focus is gone: the keyboard goes on in the content.
    stage.browser.run("document.querySelector('main a[href*=resume]').focus(); return true", Vec::new()).await;
    stage.console.act(&stage.owner, "resume", &[("job", "art")]).await;
    eventually("it is resumed", async || stage.is("document.querySelector('main a[href*=pause]')").await).await;
    assert!(stage.is("document.activeElement.id === 'main'").await);
    stage.stays().await;
    // Only what changed is announced.
    stage.goto("/").await;
    stage.shows("live").await;
    let begin = "window.sentence = document.querySelector('[role=status]'); \
                 window.changes = 0; \
                 new MutationObserver((all) => { window.changes += all.length; }) \
                 .observe(window.sentence, { childList: true, subtree: true, characterData: true }); return true";
    stage.browser.run(begin, Vec::new()).await;
    let shown = "return document.querySelector('main .asof time').textContent";
    let at = stage.browser.run(shown, Vec::new()).await;
    eventually("the page is up to date", async || stage.browser.run(shown, Vec::new()).await != at).await;
    assert!(stage.is("window.sentence.isConnected && window.changes === 0").await);
}

/// The answer to an action that failed is shown, and no script asks for it again.
async fn fails_once(stage: &Stage, redis: &mut TestRedis) {
    stage.goto("/console/ask/pause?job=art").await;
    redis.stop().await;
    stage.click("main button").await;
    stage.shows("Nothing was changed").await;
    assert!(stage.is("location.pathname === '/console/do/pause'").await);
    assert!(!stage.is("document.querySelector('[data-waits]')").await);
    redis.start_again().await;
}
