//! The flags of settings, for the command line.

use clap::Args;
use std::fmt;
use std::path::PathBuf;

/// The flags of every command.
#[derive(Args, Clone, Default)]
pub struct CommonArgs {
    /// File of settings and secrets, read instead of .env in the same way; of several, the last that sets a variable
    /// wins; the environment takes precedence over all
    #[arg(long, global = true, value_name = "FILE", help_heading = "Settings")]
    pub env_file: Vec<PathBuf>,

    /// Address of Redis: redis://user:password@host:port/db (only the host is required); rediss:// for TLS;
    /// redis+sentinel://host,host/NAME for Sentinels
    /// [env: REDIS_URL, else REDIS_HOST, REDIS_PORT, REDIS_DB, REDIS_PASSWORD] [default: redis://127.0.0.1:6379/0]
    #[arg(long, global = true, value_name = "URL", help_heading = "Settings")]
    pub redis_url: Option<String>,

    /// PEM file of the certificate authorities for rediss:// [env: SAMOVAR_REDIS_CA] [default: the system's]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Settings")]
    pub redis_ca: Option<String>,

    /// Folder of job files [env: SAMOVAR_JOBS] [default: jobs]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Settings")]
    pub jobs: Option<String>,

    /// Prefix of Samovar's own keys and channels; one fleet has one prefix
    /// [env: SAMOVAR_PREFIX] [default: samovar]
    #[arg(long, global = true, value_name = "TEXT", help_heading = "Settings")]
    pub prefix: Option<String>,

    /// Pub/sub channel of invalidations [env: SAMOVAR_CHANNEL] [default: PREFIX:invalidate, or
    /// PREFIX:dbN:invalidate in a database N other than 0]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Settings")]
    pub channel: Option<String>,

    /// Log filter: a level, or levels by module, such as samovar::warmer=debug,warn
    /// [env: SAMOVAR_LOG] [default: info]
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Settings")]
    pub log: Option<String>,

    /// Log format, text or json [env: SAMOVAR_LOG_FORMAT] [default: text]
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Settings")]
    pub log_format: Option<String>,
}

impl fmt::Debug for CommonArgs {
    /// Leaves out the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommonArgs").field("jobs", &self.jobs).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// The flags of `samovar worker`.
#[derive(Args, Clone, Debug, Default)]
pub struct WorkerArgs {
    /// Fetches in flight from this process to one upstream, 1 to 4096 [env: SAMOVAR_CONCURRENCY] [default: 64]
    #[arg(long, value_name = "N")]
    pub concurrency: Option<String>,

    /// Time for which a worker's claim on entries holds; after a crash other workers take over within half of it
    /// (5 s to 15 s) [env: SAMOVAR_CLAIM] [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub claim: Option<String>,

    /// Time that work in flight may take to finish after SIGTERM or SIGHUP [env: SAMOVAR_DRAIN] [default: 20s]
    #[arg(long, value_name = "TIME")]
    pub drain: Option<String>,

    /// Shortest interval between two samples of reads [env: SAMOVAR_SAMPLE] [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub sample: Option<String>,

    /// Fetch keys that are read and absent, as reported by Redis's keyspace events: on or off; sets
    /// notify-keyspace-events [env: SAMOVAR_MISSES] [default: off]
    #[arg(long, value_name = "SWITCH")]
    pub misses: Option<String>,

    /// Address of the HTTP server (health, statistics, metrics, commands): ADDRESS:PORT, port 0 for any free port, or
    /// `off`; SAMOVAR_TOKEN in the environment protects the commands
    /// [env: SAMOVAR_LISTEN] [default: 127.0.0.1:7070, or the next free port]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,

    /// Host names that HTTP accepts without the token, in addition to loopback names and addresses; comma-separated
    /// [env: SAMOVAR_HOSTS] [default: none]
    #[arg(long, value_name = "NAMES")]
    pub hosts: Option<String>,

    /// Answer only requests that read over HTTP, in the console as well; whoever asks, nothing is changed
    /// [env: SAMOVAR_READ_ONLY] [default: off]
    #[arg(long)]
    pub read_only: bool,

    /// Name of the environment, which the console shows in its titles [env: SAMOVAR_TITLE] [default: none]
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,
}
