//! The upstream: answers requests for items, late, wrongly or not at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Response;
use samovar::source::simulated::Exchange;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::check;
use crate::machine;
use crate::world::{Flight, Request, Shared};

/// Answers all requests.
pub(crate) async fn run(shared: Shared, mut requests: mpsc::UnboundedReceiver<Exchange>) {
    while let Some(exchange) = requests.recv().await {
        tokio::spawn(answer(shared.clone(), exchange));
    }
}

async fn answer(shared: Shared, exchange: Exchange) {
    let Exchange { request, answer } = exchange;
    let name = request.url().path().trim_start_matches("/art/").to_owned();
    let etag = request.headers().get("if-none-match").and_then(|etag| etag.to_str().ok()).map(str::to_owned);
    let way = shared.lock().trip();
    sleep(way).await;
    if answer.is_closed() {
        return shared.tell(format!("upstream   {name} given up before it arrived"));
    }
    let flight: Flight = Arc::new(Mutex::new(Some(answer)));
    let asked = {
        let mut world = shared.lock();
        world.flies(&name, &flight);
        world.ask(&name, etag.as_deref())
    };
    sleep(asked.takes).await;
    let answer = flight.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut answer) = answer.filter(|answer| !answer.is_closed()) else {
        return shared.tell(format!("upstream   {name} #{} given up", asked.number));
    };
    let Some((status, headers, body)) = asked.answer else {
        // It hangs until the client gives up.
        return answer.closed().await;
    };
    shared.tell(format!("upstream   {name} #{} answers {status} {}", asked.number, String::from_utf8_lossy(&body)));
    let mut response = Response::builder().status(status).header("content-length", body.len());
    for (key, value) in headers {
        response = response.header(key, value);
    }
    let _ = answer.send(response.body(body).expect("a response"));
}

/// A status, headers and a body.
type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

/// A request that has arrived, and what becomes of it.
struct Asked {
    number: usize,
    takes: Duration,
    answer: Option<Answer>,
}

impl crate::world::World {
    /// Returns the time of a request's way.
    fn trip(&mut self) -> Duration {
        let most = self.plan.answer / 4;
        Duration::from_millis(self.random.within(0..=most))
    }

    /// Notes that a request arrived; returns the number by which its answer is known.
    pub(crate) fn arrived(&mut self, name: &str) -> usize {
        self.requests.push(Request { name: name.to_owned(), arrived: machine::elapsed() });
        self.requests.len() - 1
    }

    /// Returns the body of an item's answer.
    pub(crate) fn body(name: &str, revision: u32, number: usize) -> String {
        format!("{{\"name\":\"{name}\",\"rev\":{revision},\"n\":{number}}}")
    }

    /// Notes that a worker's request is under way. Others of the same item must have ended.
    fn flies(&mut self, name: &str, flight: &Flight) {
        let is_open = |flight: &Flight| {
            let answer = flight.lock().unwrap_or_else(PoisonError::into_inner);
            answer.as_ref().is_some_and(|answer| !answer.is_closed())
        };
        let Some(item) = self.items.get_mut(name) else { return };
        item.flying.retain(is_open);
        let count = item.flying.len();
        item.flying.push(Arc::clone(flight));
        if count > 0 && self.plan.all_beat() {
            self.violated(check::ONE_FETCH, format!("{} requests of {name} are under way", count + 1), name);
        }
    }

    fn ask(&mut self, name: &str, etag: Option<&str>) -> Asked {
        let number = self.arrived(name);
        let now = machine::elapsed();
        let usual = self.plan.answer;
        let takes = Duration::from_millis(if !self.is_quiet && self.random.chance(20) {
            self.random.within(0..=3_000)
        } else {
            self.random.within(usual / 4..=usual)
        });
        let fails = !self.is_quiet && (self.outage > now || self.random.chance(self.plan.failing));
        if fails {
            let wait = || vec![("retry-after", "1".to_owned())];
            let answer = match self.random.below(6) {
                0 | 1 => Some((500, vec![], b"an error".to_vec())),
                2 => Some((503, wait(), b"busy".to_vec())),
                3 => Some((429, wait(), b"too many".to_vec())),
                4 => Some((200, vec![], b"<html>nonsense".to_vec())),
                _ => None,
            };
            self.tell(format!("upstream   {name} #{number} asked, and fails"));
            return Asked { number, takes, answer };
        }
        let lag = Duration::from_millis(self.random.within(0..=if self.is_quiet { 0 } else { self.plan.lag }));
        let Some(revision) = self.items.get(name).and_then(|item| item.at(now.saturating_sub(lag))) else {
            self.tell(format!("upstream   {name} #{number} asked, and has none"));
            return Asked { number, takes, answer: Some((404, vec![], b"none".to_vec())) };
        };
        self.tell(format!("upstream   {name} #{number} asked, and has {revision}"));
        let tag = format!("\"{revision}\"");
        let answer = if etag == Some(tag.as_str()) {
            if let Some(item) = self.items.get_mut(name) {
                item.confirmed = Some(now);
            }
            (304, vec![("etag", tag)], Vec::new())
        } else {
            (200, vec![("etag", tag)], Self::body(name, revision, number).into_bytes())
        };
        Asked { number, takes, answer: Some(answer) }
    }
}
