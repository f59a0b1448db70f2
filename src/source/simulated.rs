//! Simulated upstreams: on a thread that has them, requests go to the simulator instead of a socket.
//!
//! Only with the feature `simulation`, which no release has. What stands above a request stays real: limits, breakers,
//! retries, deadlines, and the reading of answers.

use std::cell::RefCell;

use reqwest::{Client, Request, RequestBuilder, Response};
use tokio::sync::{mpsc, oneshot};

thread_local! {
    static UPSTREAMS: RefCell<Option<(mpsc::UnboundedSender<Exchange>, Client)>> = const { RefCell::new(None) };
}

/// A request, and where its answer goes. Without an answer the upstream hangs.
#[derive(Debug)]
pub struct Exchange {
    /// The request.
    pub request: Request,
    /// Takes the answer. It is closed when the client gave up.
    pub answer: oneshot::Sender<hyper::Response<Vec<u8>>>,
}

/// Sends all requests of this thread to `upstreams`, until it is replaced.
///
/// # Panics
/// There is no HTTP client.
pub fn install(upstreams: mpsc::UnboundedSender<Exchange>) {
    let client = Client::builder().tls_certs_only([]).build().expect("an HTTP client without roots");
    UPSTREAMS.with_borrow_mut(|installed| *installed = Some((upstreams, client)));
}

/// Returns the client that builds requests; `None` if upstreams are real.
pub(super) fn client() -> Option<Client> {
    UPSTREAMS.with_borrow(|installed| installed.as_ref().map(|(_, client)| client.clone()))
}

/// Sends a request.
pub(super) async fn transmit(request: RequestBuilder) -> reqwest::Result<Response> {
    let Some((upstreams, _)) = UPSTREAMS.with_borrow(Clone::clone) else { return request.send().await };
    let (answer, answered) = oneshot::channel();
    let sent = upstreams.send(Exchange { request: request.build()?, answer });
    match (sent, answered.await) {
        (Ok(()), Ok(answer)) => Ok(answer.into()),
        _ => std::future::pending().await,
    }
}
