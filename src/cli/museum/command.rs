//! `samovar museum`: runs the bundled upstream, for trials.

use std::net::SocketAddr;

use clap::Args;

use super::super::exit;
use super::super::session::complain;
use super::{Museum, Options};

/// Arguments of `samovar museum`.
#[derive(Args)]
pub(in crate::cli) struct MuseumArgs {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = address)]
    listen: SocketAddr,
    /// The factor for latencies: 1 means 200 to 2000 ms, 0 answers at once
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = factor, allow_hyphen_values = true)]
    latency: f64,
    /// The share of answers that fail with status 500, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share, allow_hyphen_values = true)]
    failures: f64,
}

pub(in crate::cli) async fn run(args: &MuseumArgs) -> u8 {
    let options = Options { latency_factor: args.latency, failures: args.failures, ..Options::default() };
    let open = async {
        let museum = Museum::start(args.listen, options).await?;
        let url = museum.url();
        println!("the museum is open at {url}; try curl {url}/popular");
        museum.run(crate::cli::asked_to_stop()).await
    };
    match open.await {
        Ok(()) => exit::OK,
        Err(e) => {
            complain(format_args!("{e:#}"));
            exit::FAILED
        }
    }
}

/// Reads a factor of latencies.
fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse::<f64>().ok().filter(|factor| factor.is_finite() && *factor >= 0.0);
    factor.ok_or_else(|| "must be a number from 0 on, such as 0.5".to_owned())
}

/// Reads a share.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "must be a number from 0 to 1, such as 0.1".to_owned())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "is not an address; write 127.0.0.1:8080, or 0.0.0.0:8080 for all interfaces".to_owned())
}
