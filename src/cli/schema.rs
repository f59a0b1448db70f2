//! `samovar schema`: prints the JSON Schema of job files or of `upstreams.toml`.

use super::exit;
use crate::job::{JOB_SCHEMA, UPSTREAMS_SCHEMA};
use clap::{Args, ValueEnum};

/// Arguments of `samovar schema`.
#[derive(Args)]
pub(super) struct SchemaArgs {
    /// The files that the schema describes
    #[arg(value_enum)]
    files: Files,
}

#[derive(Clone, Copy, ValueEnum)]
enum Files {
    /// Job files
    Job,
    /// upstreams.toml
    Upstreams,
}

pub(super) fn run(args: &SchemaArgs) -> u8 {
    print!(
        "{}",
        match args.files {
            Files::Job => JOB_SCHEMA,
            Files::Upstreams => UPSTREAMS_SCHEMA,
        }
    );
    exit::OK
}
