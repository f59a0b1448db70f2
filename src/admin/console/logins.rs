//! The limit of refused logins, so that a token cannot be found by trying.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The refused logins of an address within [`PERIOD`] after which it has to wait.
const MOST: u32 = 10;
const PERIOD: Duration = Duration::from_secs(60);
/// The most addresses that are remembered.
const ADDRESSES: usize = 1_000;

/// The refused logins of each address, with the time of the first.
#[derive(Debug, Default)]
pub(super) struct Logins {
    refused: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

impl Logins {
    /// Returns `true` if this address may try a login.
    pub(super) fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        let refused = self.refused();
        refused.get(&network(address)).is_none_or(|(since, count)| *since + PERIOD <= now || *count < MOST)
    }

    /// Notes that a login was refused.
    pub(super) fn was_refused(&self, address: IpAddr, now: Instant) {
        let mut refused = self.refused();
        if refused.len() >= ADDRESSES {
            refused.retain(|_, (since, _)| *since + PERIOD > now);
        }
        if refused.len() >= ADDRESSES {
            let oldest = refused.iter().min_by_key(|(_, (since, _))| *since).map(|(address, _)| *address);
            oldest.map(|oldest| refused.remove(&oldest));
        }
        let (since, count) = refused.entry(network(address)).or_insert((now, 0));
        if *since + PERIOD <= now {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<IpAddr, (Instant, u32)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what a client has of its own: an address of IPv4, or a network of 64 bits of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_waits_after_ten_refused_logins() {
        let (logins, now) = (Logins::default(), Instant::now());
        let [one, same, other] = ["2001:db8::1", "2001:db8::2", "10.0.0.1"].map(|text| text.parse().unwrap());
        for _ in 0..MOST {
            assert!(logins.may_try(one, now));
            logins.was_refused(one, now);
        }
        assert_eq!([one, same, other].map(|address| logins.may_try(address, now)), [false, false, true]);
        assert!(logins.may_try(one, now + PERIOD));
        logins.was_refused(one, now + PERIOD);
        assert!(logins.may_try(one, now + PERIOD));
    }

    #[test]
    fn few_addresses_are_remembered() {
        let (logins, now) = (Logins::default(), Instant::now());
        for n in 0..2_000_u32 {
            logins.was_refused(IpAddr::from(n.to_be_bytes()), now);
        }
        assert_eq!(logins.refused().len(), ADDRESSES);
    }
}
