//! The job that most tests warm, and the worker that does it.

use super::{JobsFolder, Samovar, TestRedis, Upstream, WorkerProcess, samovar};

/// One job `art`: the entry `art:{name}` is what the upstream answers to `/art/{name}`.
#[derive(Clone, Debug)]
pub struct Art {
    url: String,
    ttl: String,
    top: String,
    limits: String,
    source: String,
    list: Vec<String>,
    entries: String,
    warm: String,
}

impl Art {
    /// From this upstream, with nothing listed, a TTL of an hour and no limits.
    pub fn of(upstream: &Upstream) -> Self {
        Self {
            url: upstream.url().to_owned(),
            ttl: "1h".to_owned(),
            top: String::new(),
            limits: String::new(),
            source: String::new(),
            list: Vec::new(),
            entries: String::new(),
            warm: String::new(),
        }
    }

    pub fn ttl(mut self, ttl: &str) -> Self {
        self.ttl = ttl.to_owned();
        self
    }

    /// More lines before the tables.
    pub fn top(mut self, toml: &str) -> Self {
        self.top = toml.to_owned();
        self
    }

    /// With these entries listed.
    pub fn list<T: ToString>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.list = names.into_iter().map(|name| name.to_string()).collect();
        self
    }

    /// More lines for the upstream.
    pub fn limits(mut self, toml: &str) -> Self {
        self.limits = toml.to_owned();
        self
    }

    /// More lines for `[source]`.
    pub fn source(mut self, toml: &str) -> Self {
        self.source = toml.to_owned();
        self
    }

    /// More lines for `[entries]`.
    pub fn entries(mut self, toml: &str) -> Self {
        self.entries = toml.to_owned();
        self
    }

    /// The lines of `[warm]`.
    pub fn warm(mut self, toml: &str) -> Self {
        self.warm = toml.to_owned();
        self
    }

    /// The job's file. Unless [`Self::warm`] names rechecks, none comes during a test.
    pub fn toml(&self) -> String {
        let Self { ttl, top, source, list, entries, warm, .. } = self;
        let recheck = if warm.contains("recheck") { "" } else { "recheck = [\"10m\"]\n" };
        let list = serde_json::to_string(list).unwrap();
        format!(
            "key = \"art:{{name}}\"\nttl = \"{ttl}\"\n{top}\n\n[source]\nkind = \"http\"\nupstream = \"museum\"\n\
             path = \"/art/{{{{ name }}}}\"\n{source}\n\n[entries]\nlist = {list}\n{entries}\n\n[warm]\n{recheck}{warm}\n"
        )
    }

    /// A folder with this job and its upstream, which is called `museum`.
    pub fn folder(&self) -> JobsFolder {
        let Self { url, limits, .. } = self;
        JobsFolder::new().upstreams(&format!("[museum]\nurl = \"{url}\"\n{limits}\n")).job("art", &self.toml())
    }
}

/// Starts `samovar worker` on this Redis with these jobs, with a log of all it does.
pub fn worker(redis: &TestRedis, jobs: &JobsFolder) -> WorkerProcess {
    talkative(redis, jobs).spawn()
}

/// Starts [`worker`] with so short a claim time that a test can wait for it to run out.
pub fn hasty_worker(redis: &TestRedis, jobs: &JobsFolder) -> WorkerProcess {
    talkative(redis, jobs).env("SAMOVAR_CLAIM", "1s").spawn()
}

/// Returns the command of [`worker`], to be set up further.
pub fn talkative(redis: &TestRedis, jobs: &JobsFolder) -> Samovar {
    samovar(["worker"]).redis(redis).jobs(jobs).env("SAMOVAR_LOG", "debug")
}
