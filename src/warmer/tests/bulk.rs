//! Groups give back what they hold, whatever becomes of their members.

use super::*;

/// Claims entries of the job `many`, which asks for up to ten at once.
async fn claim(bench: &Bench, names: &[&str]) -> Chunk {
    bench.claim("many", names, Trigger::Cron).await
}

/// Warms a chunk whose first request is answered with items of these entries; returns the number of requests.
async fn warm(bench: &mut Bench, chunk: Chunk, items: &[&str]) -> usize {
    let items: Vec<Value> = items.iter().map(|name| serde_json::json!({ "name": name })).collect();
    let (answer, mut asked) = (Value::from(items).to_string(), 0);
    let mut warming = std::pin::pin!(Arc::clone(&bench.warmer).warm_chunk(chunk));
    loop {
        tokio::select! {
            () = &mut warming => return asked,
            Some(request) = bench.requests.recv() => {
                asked += 1;
                let _ = request.send(reply(200, &answer));
            }
        }
    }
}

impl Bench {
    /// Returns the entries of the job `many` that have a value.
    async fn stored(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.ask(&["KEYS", "many:*"]).await;
        keys.sort();
        keys
    }
}

#[tokio::test]
async fn a_panic_in_a_group_ends_its_own_entry_only() {
    let mut bench = Bench::start().await;
    let names = ["a", "b", "poison", "c"];
    let chunk = claim(&bench, &names).await;
    assert_eq!(warm(&mut bench, chunk, &names).await, 1);
    assert_eq!(bench.stored().await, ["many:a", "many:b", "many:c"]);
    bench.nothing_is_held("after a panic in a group").await;
}

#[tokio::test]
async fn a_cancelled_group_is_handed_back() {
    let mut bench = Bench::start().await;
    let chunk = claim(&bench, &["a", "b", "c"]).await;
    {
        let mut warming = std::pin::pin!(Arc::clone(&bench.warmer).warm_chunk(chunk));
        tokio::select! {
            () = &mut warming => panic!("it has no answer"),
            _ = bench.requests.recv() => {}
        }
    }
    assert_eq!((bench.leases().await.len(), bench.warmer.in_flight()), (3, 3));
    bench.warmer.hand_back().await;
    // The task of the group is dropped with its last member.
    while bench.gate.in_flight() > 0 {
        tokio::task::yield_now().await;
    }
    bench.gate.refresh().await;
    bench.nothing_is_held("a cancelled group").await;
}

#[tokio::test]
async fn a_group_goes_on_without_members_that_get_no_lease() {
    let mut bench = Bench::start().await;
    let lease = bench.lease("many:b").await;
    let chunk = claim(&bench, &["a", "b", "c"]).await;
    assert_eq!(warm(&mut bench, chunk, &["a", "c"]).await, 1);
    assert_eq!(bench.stored().await, ["many:a", "many:c"]);
    bench.no_permit_is_held("one of its entries is busy").await;

    let other = bench.lease("many:d").await;
    let chunk = claim(&bench, &["b", "d"]).await;
    assert_eq!(warm(&mut bench, chunk, &[]).await, 0, "nobody is left to ask for");
    bench.no_permit_is_held("all of its entries are busy").await;
    for (key, lease) in [("many:b", lease), ("many:d", other)] {
        bench.store.release(&EntryKey::new(key), &lease.token, None).await.unwrap();
    }
    bench.nothing_is_held("in the end").await;
}

#[tokio::test]
async fn a_member_invalidated_in_its_group_is_asked_for_again_alone() {
    let mut bench = Bench::start().await;
    let (chunk, mut asked) = (claim(&bench, &["a", "b"]).await, 0);
    let store = bench.store.clone();
    {
        let mut warming = std::pin::pin!(Arc::clone(&bench.warmer).warm_chunk(chunk));
        loop {
            tokio::select! {
                () = &mut warming => break,
                Some(request) = bench.requests.recv() => {
                    asked += 1;
                    let body = if asked == 1 {
                        let at = store.now().await.unwrap();
                        store.fence(&EntryKey::new("many:b"), Stamp { at, removal: Removal::Refresh }).await.unwrap();
                        "[{\"name\": \"a\", \"version\": 1}, {\"name\": \"b\", \"version\": 1}]"
                    } else {
                        "[{\"name\": \"b\", \"version\": 2}]"
                    };
                    let _ = request.send(reply(200, body));
                }
            }
        }
    }
    let values: [String; 2] = [bench.ask(&["GET", "many:a"]).await, bench.ask(&["GET", "many:b"]).await];
    assert!(asked == 2 && values[0].contains(": 1") && values[1].contains(": 2"), "{asked}: {values:?}");
    bench.nothing_is_held("an invalidation within a group").await;
}

#[tokio::test]
async fn a_suspect_shares_no_request() {
    let mut bench = Bench::start().await;
    let crashed = LastAttempt { crashes: SUSPECT_CRASHES, ..LastAttempt::default() };
    let lease = bench.lease("many:b").await;
    bench.store.release(&EntryKey::new("many:b"), &lease.token, Some(&crashed)).await.unwrap();
    let chunk = claim(&bench, &["a", "b", "c"]).await;
    assert_eq!(warm(&mut bench, chunk, &["a", "b", "c"]).await, 2, "its crash would count for the others");
    assert_eq!(bench.stored().await, ["many:a", "many:b", "many:c"]);
    bench.nothing_is_held("a suspect in a group").await;
}
