//! `samovar health`: checks the worker of this machine with one HTTP request, for health checks of containers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::exit;
use super::session::{print_json, refuse};
use crate::config::{DEFAULT_PORT, Listen, Settings};
use crate::entry::duration;
use crate::entry::escape::escaped;
use crate::redis::Servers;

/// The timeout of the worker's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer, in bytes.
const MOST: usize = 1 << 20;

/// Arguments of `samovar health`.
#[derive(Args)]
pub(super) struct HealthArgs {
    /// The worker's address, as in its own settings [env: SAMOVAR_LISTEN] [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &HealthArgs, settings: &Settings) -> u8 {
    let address = match address(settings.listen) {
        Ok(address) => address,
        Err(why) => return refuse(exit::FAILED, args.json, why).0,
    };
    match ask(address).await {
        Ok(mut state) => {
            // Another fleet's worker may listen at the default address.
            let url = format!("http://{address}");
            state["url"] = url.clone().into();
            // A failure of one job is no reason to replace the worker.
            let status = ["healthy", "degraded"].into_iter().find(|word| state["status"] == *word);
            let healthy = status.is_some();
            if args.json {
                print_json(&state);
            } else {
                println!("{}", status.unwrap_or("unhealthy"));
                println!("  worker {} at {url}", escaped(state["worker"].as_str().unwrap_or("without a name yet")));
                if let Some(redis) = redis(&state) {
                    println!("  Redis: {}", escaped(&redis));
                }
                let reasons = state["reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
                reasons.iter().filter_map(Value::as_str).for_each(|reason| println!("  {}", escaped(reason)));
            }
            if healthy { exit::OK } else { exit::FAILED }
        }
        Err(why) => {
            let remedy = "is a worker running here with the same SAMOVAR_LISTEN?";
            let what = format!("no worker answers at http://{address}/health: {why}; {remedy}");
            refuse(exit::FAILED, args.json, what).0
        }
    }
}

/// Returns the kind of Redis that a worker uses, and its masters, as the worker tells them.
fn redis(state: &Value) -> Option<String> {
    let masters = state["masters"].as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let topology = Servers::TOPOLOGIES.into_iter().find(|topology| state["topology"] == *topology)?;
    Some(Servers { topology, masters, ..Servers::default() }.to_string())
}

/// Returns the address at which this machine reaches a worker that listens there.
fn address(listen: Listen) -> Result<SocketAddr, &'static str> {
    let address = match listen {
        Listen::Anywhere => (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into(),
        Listen::At(address) => address,
        Listen::Off => {
            return Err(
                "the worker answers no HTTP (SAMOVAR_LISTEN=off), so its health cannot be asked for; let it listen on \
                        127.0.0.1:7070, or take the health check off",
            );
        }
    };
    if address.port() == 0 {
        return Err("SAMOVAR_LISTEN has port 0 (any port), so the worker's address is unknown; set a port");
    }
    Ok(match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    })
}

async fn ask(address: SocketAddr) -> Result<Value, String> {
    let asked = async {
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        let mut response = client.get(format!("http://{address}/health")).send().await?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > MOST {
                break;
            }
        }
        reqwest::Result::Ok(body)
    };
    let body = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(body)) => body,
        Ok(Err(e)) => return Err(format!("{:#}", anyhow::Error::from(e))),
        Err(_) => return Err(format!("no answer within {}", duration::text(PATIENCE))),
    };
    let state: Option<Value> = serde_json::from_slice(&body).ok();
    state.filter(|state| state["status"].is_string()).ok_or_else(|| "the answer is not from a worker".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_asked_where_it_listens_on_this_machine() {
        let of = |text: &str| address(Listen::At(text.parse().unwrap())).map(|address| address.to_string());
        assert_eq!(address(Listen::Anywhere).unwrap().to_string(), "127.0.0.1:7070");
        assert_eq!(of("0.0.0.0:80").unwrap(), "127.0.0.1:80");
        assert_eq!(of("[::]:80").unwrap(), "[::1]:80");
        assert_eq!(of("10.0.0.7:80").unwrap(), "10.0.0.7:80");
        assert!(of("127.0.0.1:0").unwrap_err().contains("port"));
        assert!(address(Listen::Off).unwrap_err().contains("off"));
    }
}
