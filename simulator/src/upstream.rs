//! The upstreams: answer requests for artworks, for the feed and for stories, late, wrongly or not at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Response;
use samovar::source::simulated::Exchange;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::check;
use crate::completions::Prompt;
use crate::files::Job;
use crate::machine;
use crate::world::{Flight, Request, Shared, World};

/// Answers all requests.
pub(crate) async fn run(shared: Shared, mut requests: mpsc::UnboundedReceiver<Exchange>) {
    while let Some(exchange) = requests.recv().await {
        tokio::spawn(answer(shared.clone(), exchange));
    }
}

/// The target of a request.
enum Asking {
    /// An artwork, for a job file, with the validator of a known value.
    Art { name: String, file: u32, etag: Option<String> },
    /// Several artworks, for a job file.
    Arts { names: Vec<String>, file: u32 },
    /// The names of artworks.
    Feed,
    /// A story.
    Story(Prompt),
}

impl Asking {
    fn read(Exchange { request, .. }: &Exchange) -> Self {
        let url = request.url();
        if url.host_str() == Some("model") {
            let body = request.body().and_then(|body| body.as_bytes()).unwrap_or_default();
            return Self::Story(Prompt::read(body).expect("a prompt as the job file has it"));
        }
        let told = |name: &str| url.query_pairs().find(|(told, _)| told == name).map(|(_, text)| text.into_owned());
        let file = told("file").and_then(|file| file.parse().ok()).unwrap_or_default();
        if let Some(names) = told("names") {
            return Self::Arts { names: names.split(',').map(str::to_owned).collect(), file };
        }
        let Some(name) = url.path().strip_prefix("/art/") else { return Self::Feed };
        let etag = request.headers().get("if-none-match").and_then(|etag| etag.to_str().ok());
        Self::Art { name: name.to_owned(), file, etag: etag.map(str::to_owned) }
    }

    /// Returns the keys of the entries.
    fn keys(&self) -> Vec<String> {
        match self {
            Self::Art { name, .. } => vec![Job::Art.key(name)],
            Self::Arts { names, .. } => names.iter().map(|name| Job::Art.key(name)).collect(),
            Self::Feed => Vec::new(),
            Self::Story(prompt) => vec![Job::Story.key(&prompt.name)],
        }
    }
}

async fn answer(shared: Shared, exchange: Exchange) {
    let asking = Asking::read(&exchange);
    let answer = exchange.answer;
    let keys = asking.keys();
    let name = if keys.is_empty() { "the feed".to_owned() } else { keys.join(" ") };
    let way = shared.lock().trip();
    sleep(way).await;
    if answer.is_closed() {
        return shared.tell(format!("upstream   {name} given up before it arrived"));
    }
    let flight: Flight = Arc::new(Mutex::new(Some(answer)));
    let asked = {
        let mut world = shared.lock();
        for key in &keys {
            world.flies(key, &flight);
            if let Some((job, name)) = Job::of(key) {
                world.is_not_paused(job, name);
                if job == Job::Art {
                    world.is_for_someone(name);
                }
            }
        }
        match &asking {
            Asking::Art { name, file, etag } => world.ask(name, *file, etag.as_deref()),
            Asking::Arts { names, file } => world.ask_for_many(names, *file),
            Asking::Feed => world.ask_feed(),
            Asking::Story(prompt) => world.complete(prompt),
        }
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
pub(crate) type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

/// A request that has arrived, and what becomes of it.
pub(crate) struct Asked {
    pub(crate) number: usize,
    pub(crate) takes: Duration,
    pub(crate) answer: Option<Answer>,
}

impl World {
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
    fn body(name: &str, revision: u32, number: usize, file: u32) -> String {
        format!("{{\"name\":\"{name}\",\"rev\":{revision},\"n\":{number},\"file\":{file}}}")
    }

    /// Notes that a worker's request is under way. Others of the same entry must have ended.
    fn flies(&mut self, key: &str, flight: &Flight) {
        let is_open = |flight: &Flight| {
            let answer = flight.lock().unwrap_or_else(PoisonError::into_inner);
            answer.as_ref().is_some_and(|answer| !answer.is_closed())
        };
        let flights = self.flights.entry(key.to_owned()).or_default();
        flights.retain(is_open);
        let count = flights.len();
        flights.push(Arc::clone(flight));
        let item = Job::of(key).and_then(|(_, name)| self.items.get(name));
        let is_taken_over = item.is_some_and(|item| item.taken_over_until > machine::elapsed());
        if count > 0 && !is_taken_over && self.plan.all_beat() {
            self.violated(check::ONE_FETCH, format!("{} requests of {key} are under way", count + 1), key);
        }
    }

    /// Returns the time that an answer takes.
    pub(crate) fn takes(&mut self) -> Duration {
        let usual = self.plan.answer;
        Duration::from_millis(if !self.is_quiet && self.random.chance(20) {
            self.random.within(0..=3_000)
        } else {
            self.random.within(usual / 4..=usual)
        })
    }

    /// Returns the answer of an upstream that fails, if it does: an error, nonsense, or none at all.
    pub(crate) fn failure(&mut self) -> Option<Option<Answer>> {
        let fails = !self.is_quiet && (self.outage > machine::elapsed() || self.random.chance(self.plan.failing));
        let wait = || vec![("retry-after", "1".to_owned())];
        fails.then(|| match self.random.below(6) {
            0 | 1 => Some((500, vec![], b"an error".to_vec())),
            2 => Some((503, wait(), b"busy".to_vec())),
            3 => Some((429, wait(), b"too many".to_vec())),
            4 => Some((200, vec![], b"<html>nonsense".to_vec())),
            _ => None,
        })
    }

    fn ask_feed(&mut self) -> Asked {
        let takes = self.takes();
        let answer = self.failure().unwrap_or_else(|| {
            let names: Vec<&String> = self.feed.iter().collect();
            Some((200, vec![], format!("{names:?}").into_bytes()))
        });
        Asked { number: 0, takes, answer }
    }

    fn ask(&mut self, name: &str, file: u32, etag: Option<&str>) -> Asked {
        let number = self.arrived(name);
        let now = machine::elapsed();
        let takes = self.takes();
        if let Some(answer) = self.failure() {
            self.tell(format!("upstream   {name} #{number} asked, and fails"));
            return Asked { number, takes, answer };
        }
        let Some(revision) = self.shown(name, number) else {
            return Asked { number, takes, answer: Some((404, vec![], b"none".to_vec())) };
        };
        let tag = format!("\"{revision} {file}\"");
        let answer = if etag == Some(tag.as_str()) {
            if let Some(item) = self.items.get_mut(name) {
                item.confirmed = Some(now);
            }
            (304, vec![("etag", tag)], Vec::new())
        } else {
            (200, vec![("etag", tag)], Self::body(name, revision, number, file).into_bytes())
        };
        Asked { number, takes, answer: Some(answer) }
    }

    /// Answers a request for several artworks.
    fn ask_for_many(&mut self, names: &[String], file: u32) -> Asked {
        let numbers: Vec<usize> = names.iter().map(|name| self.arrived(name)).collect();
        let number = numbers[0];
        let takes = self.takes();
        let bulk = self.plan.bulk.expect("only such jobs ask so");
        if names.len() > bulk.size {
            self.violated(
                check::IN_BULK,
                format!("{} artworks in a request, not {}", names.len(), bulk.size),
                &names[0],
            );
        }
        if let Some(answer) = self.failure() {
            self.tell(format!("upstream   {names:?} #{number} asked, and fails"));
            return Asked { number, takes, answer };
        }
        if names.len() > 1 && !self.is_quiet && self.random.chance(bulk.refused) {
            self.tell(format!("upstream   {names:?} #{number} asked, and refuses"));
            return Asked { number, takes, answer: Some((400, vec![], b"not these".to_vec())) };
        }
        let shown = names.iter().zip(numbers);
        let mut items: Vec<(&String, String)> = shown
            .filter_map(|(name, number)| Some((name, Self::body(name, self.shown(name, number)?, number, file))))
            .collect();
        if items.len() > 1 && !self.is_quiet && self.random.chance(bulk.short) {
            items.truncate(1 + self.random.below(items.len() - 1));
        }
        let answer = if items.is_empty() && self.random.chance(500) {
            (404, vec![], b"none of them".to_vec())
        } else if bulk.is_by_name {
            let items: Vec<String> = items.iter().map(|(name, item)| format!("\"{name}\":{item}")).collect();
            (200, vec![], format!("{{{}}}", items.join(",")).into_bytes())
        } else {
            let items: Vec<String> = items.into_iter().map(|(_, item)| item).collect();
            (200, vec![], format!("[{}]", items.join(",")).into_bytes())
        };
        Asked { number, takes, answer: Some(answer) }
    }

    /// Returns the revision that the upstream shows of an artwork.
    fn shown(&mut self, name: &str, number: usize) -> Option<u32> {
        let now = machine::elapsed();
        if !self.is_quiet && self.vanished > now {
            self.tell(format!("upstream   {name} #{number} asked, and has none for a while"));
            return None;
        }
        let lag = Duration::from_millis(self.random.within(0..=if self.is_quiet { 0 } else { self.plan.lag }));
        let revision = self.items.get(name).and_then(|item| item.at(now.saturating_sub(lag)));
        match revision {
            Some(revision) => self.tell(format!("upstream   {name} #{number} asked, and has {revision}")),
            None => self.tell(format!("upstream   {name} #{number} asked, and has none")),
        }
        revision
    }
}
