//! Reading the state: what it costs with many jobs, and what is shown if a part of it cannot be read.

use std::time::Duration;

use super::{Console, OWNER, VIEWER, both, send};
use crate::support::{
    Fault, JobsFolder, Proxy, TestCluster, TestRedis, Upstream, eventually, eventually_within, samovar,
};

const MANY: usize = 300;
/// A part of what a client sends that waits for each answer.
const FEW: usize = 100;
/// The time in which a Cluster without a master may be asked.
const SOON: Duration = Duration::from_secs(90);
const LOG: &str = "samovar:audit-log";

/// Returns jobs with these names, which list nothing.
fn idle_jobs(upstream: &Upstream, names: impl IntoIterator<Item = String>) -> JobsFolder {
    let folder = JobsFolder::new().upstreams(&format!("[museum]\nurl = \"{}\"\n", upstream.url()));
    names.into_iter().fold(folder, |folder, name| {
        let toml = format!(
            "key = \"{name}:{{id}}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
             path = \"/{name}/{{{{ id }}}}\"\n"
        );
        folder.job(&name, &toml)
    })
}

#[tokio::test]
async fn many_jobs_are_read_in_few_round_trips() {
    let (redis, upstream) = both().await;
    let proxy = Proxy::before(redis.port()).await;
    let jobs = idle_jobs(&upstream, (0..MANY).map(|n| format!("job{n:03}")));
    let worker = samovar(["worker"]).redis_at(&proxy.url()).jobs(&jobs);
    let worker = worker.env("SAMOVAR_TOKEN", OWNER).env("SAMOVAR_VIEWER_TOKEN", VIEWER);
    let console = Console::of(worker).await;
    let owner = console.log_in(OWNER).await;
    // A network, on which a client that does not wait sends much at once.
    proxy.set(Fault::Delay(Duration::from_millis(5)));
    let sent_for = async |path: &str| {
        let before = proxy.sent();
        let page = console.page(&owner, path).await;
        (proxy.sent() - before, page)
    };
    for path in ["/", "/console/jobs"] {
        let (sent, page) = sent_for(path).await;
        assert!(!page.contains("cannot be read") && (path == "/" || page.contains("300 of 300")), "{path}: {page}");
        assert!(sent < MANY, "{path}: {sent} pieces for {MANY} jobs, each of which takes six questions");
    }
    for path in ["/console/jobs/job007", "/console/agenda", "/console/upstreams", "/console/dead"] {
        let (sent, page) = sent_for(path).await;
        assert!(
            (page.contains("job007") || page.contains("No entry is given up")) && sent < FEW,
            "{path}: {sent} pieces"
        );
    }
}

#[tokio::test]
async fn a_master_that_is_away_hides_only_what_it_has() {
    let options = TestRedis::options().append_only().arg("--cluster-require-full-coverage", "no");
    let mut cluster = TestCluster::of(vec![options; 3], 0).await;
    let upstream = Upstream::start().await;
    let lost = cluster.owner(LOG).await;
    let names = async |nth| {
        let agendas = (0..).map(|n| format!("samovar:agenda:{{job{n:03}}}"));
        let agenda = cluster.key_on(nth, agendas).await;
        agenda.split(['{', '}']).nth(1).unwrap().to_owned()
    };
    let (gone, there) = (names(lost).await, names((lost + 1) % 3).await);
    let jobs = idle_jobs(&upstream, [gone.clone(), there.clone()]);
    let worker = samovar(["worker"]).redis_at(&cluster.url()).jobs(&jobs);
    let console = Console::of(worker.env("SAMOVAR_TOKEN", OWNER).env("SAMOVAR_VIEWER_TOKEN", VIEWER)).await;
    let owner = console.log_in(OWNER).await;
    console.act(&owner, "pause", &[("job", &there), ("note", "moving house")]).await;
    cluster.nodes[lost].kill9();

    let page = async |path: &str| {
        let answer = send(console.request("GET", path).header("cookie", &owner)).await;
        if answer.status == 200 { Ok(answer.text) } else { Err(answer) }
    };
    eventually_within(SOON, "the rest is shown", async || {
        let jobs = page("/console/jobs").await?;
        let is_told = jobs.contains("unknown</span>") && jobs.contains("paused</span>");
        if is_told { Ok(()) } else { Err(super::Answer::of_page(jobs)) }
    })
    .await;
    let overview = page("/").await.unwrap();
    assert!(overview.contains("A part of the state cannot be read") || overview.contains("cannot do its work"));
    assert!(overview.contains(&format!("{gone}</a> cannot be read")), "{overview}");
    assert!(!overview.contains(&format!("{there}</a> cannot be read")), "{overview}");
    let due = overview.split("<dt>Due</dt>").nth(1).unwrap();
    assert!(due.starts_with("<dd><span class=\"unknown\""), "unknown is not zero: {due}");
    assert!(page(&format!("/console/jobs/{there}")).await.unwrap().contains("moving house"));
    let hidden = page(&format!("/console/jobs/{gone}")).await.unwrap_err();
    assert!(hidden.status == 503 && hidden.text.contains("state of this job cannot be read"), "{hidden:?}");
    for path in ["/console/agenda", "/console/dead"] {
        let shown = page(path).await.unwrap();
        assert!(shown.contains(&gone) && shown.contains("cannot be read"), "{path}: {shown}");
    }
    for path in ["/console/upstreams", "/console/fleet"] {
        page(path).await.unwrap();
    }
    // Without its log, nothing is done.
    let refused = console.try_to_act(&owner, "resume", &[("job", &there)]).await;
    assert!(refused.status == 503 && refused.text.contains("Nothing was changed"), "{refused:?}");
    assert!(page(&format!("/console/jobs/{there}")).await.unwrap().contains("moving house"));
    cluster.nodes[lost].start_again().await;
    eventually_within(SOON, "all is shown again", async || {
        let jobs = page("/console/jobs").await?;
        if jobs.contains("unknown</span>") { Err(super::Answer::of_page(jobs)) } else { Ok(()) }
    })
    .await;
    eventually("a change is made again", async || {
        console.try_to_act(&owner, "resume", &[("job", &there)]).await.status == 303
    })
    .await;
}
