//! `samovar museum`: runs the bundled upstream, for trials.

use std::net::SocketAddr;

use clap::Args;

use super::super::exit;
use crate::cli::museum::{self, Options};

/// Arguments of `samovar museum`.
#[derive(Args)]
pub(in crate::cli) struct MuseumArgs {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The factor for latencies: 1 means 200 to 2000 ms, 0 answers at once
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    latency: f64,
    /// The share of answers that fail with status 500, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    failures: f64,
}

pub(in crate::cli) async fn run(args: &MuseumArgs) -> u8 {
    let options = Options { latency_factor: args.latency, failures: args.failures, ..Options::default() };
    println!("the museum is open at http://{}; try curl http://{}/popular", args.listen, args.listen);
    match museum::serve(args.listen, options, crate::cli::asked_to_stop()).await {
        Ok(()) => exit::OK,
        Err(e) => {
            eprintln!("samovar: {e:#}");
            exit::FAILED
        }
    }
}
