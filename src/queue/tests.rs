use std::collections::BTreeSet;

use super::*;
use crate::agenda::{Due, State, Trigger};
use crate::redis::server::Server;

const DEAD_AFTER: Duration = Duration::from_secs(60);

fn single(key: &str) -> Chunk {
    let due =
        Due { at: 1, state: State::Claimed, trigger: Trigger::Invalidation, urgency: Urgency::Single, look: false };
    Chunk {
        job: "art".to_owned(),
        entries: vec![Claimed { key: key.to_owned(), score: format!("{:.6}", due.score()), since: 1 }],
    }
}

#[tokio::test]
async fn what_was_named_by_itself_is_pulled_as_it_is_pushed_by_whoever_runs() {
    let server = Server::start().await;
    let queue = Queue::new(server.connect().await, &Keys::new("test", "test:invalidate"), "host-1");
    let waiting = async || -> usize {
        let list = queue.layout.active_jobs_list().to_owned();
        redis::cmd("LLEN").arg(list).query_async(&mut queue.redis.clone()).await.unwrap()
    };

    // Nobody runs: it waits.
    assert_eq!(queue.push(&[single("early")], true).await.unwrap(), 1);
    assert_eq!(waiting().await, 1);

    let (stop, (done, mut ended)) = (CancellationToken::new(), mpsc::unbounded_channel());
    let handle = move |chunk: Chunk| {
        let _ = done.send(chunk.entries[0].key.clone());
        std::future::ready(())
    };
    let pushing = async {
        let mut keys: BTreeSet<String> = (0..IN_HAND * 2).map(|n| n.to_string()).collect();
        assert_eq!(ended.recv().await.unwrap(), "early");
        let singles: Vec<Chunk> = keys.iter().map(|key| single(key)).collect();
        // At once, so that hands run out and what finds none waits for its turn.
        let pushes = singles.chunks(3).map(|some| queue.push(some, true));
        futures_util::future::try_join_all(pushes).await.unwrap();
        while !keys.is_empty() {
            assert!(keys.remove(&ended.recv().await.unwrap()), "each is handled once");
        }
        stop.cancel();
    };
    let (ran, ()) = tokio::join!(queue.run(handle, stop.clone()), pushing);
    ran.unwrap();
    assert!(ended.recv().await.is_none());

    // Nobody runs any more: it waits for others.
    assert_eq!(queue.push(&[single("late")], true).await.unwrap(), 1);
    assert_eq!(waiting().await, 1);
    assert_eq!(queue.in_hand_of("host-1").await.unwrap(), []);
    queue.leave(DEAD_AFTER).await.unwrap();
}
